//! Labels and what selects them.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use thiserror::Error;

/// The labels of one object.
pub type Labels = BTreeMap<String, String>;

/// What selects objects by their labels: all of its requirements must hold. Without any it selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Sorted, and none is there twice, so that selectors which say the same are mostly equal.
    requirements: Vec<Requirement>,
}

/// One condition on the labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Requirement {
    /// The label is there and has one of these values.
    In(String, Vec<String>),
    /// The label is not there, or has none of these values.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is not there.
    DoesNotExist(String),
}

/// Why a selector cannot be understood. Such a selector must select nothing where that closes, everything where that does.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidSelector {
    /// Not one of the four that Kubernetes has.
    #[error("{0:?} is no operator of a label selector; In, NotIn, Exists and DoesNotExist are")]
    Operator(String),
    /// In and NotIn without a value.
    #[error("the requirement on {0:?} names no value; give In and NotIn at least one")]
    NoValues(String),
    /// Exists and DoesNotExist with values.
    #[error("the requirement on {0:?} names values; take them out, or write In or NotIn")]
    Values(String),
}

impl Selector {
    /// What `written` means.
    ///
    /// # Errors
    /// What in it makes no sense.
    pub fn new(written: &LabelSelector) -> Result<Selector, InvalidSelector> {
        let mut requirements = Vec::new();
        for (key, value) in written.match_labels.iter().flatten() {
            requirements.push(Requirement::In(key.clone(), vec![value.clone()]));
        }
        for expression in written.match_expressions.iter().flatten() {
            let key = expression.key.clone();
            let mut values = expression.values.clone().unwrap_or_default();
            values.sort_unstable();
            values.dedup();
            let takes_values = matches!(expression.operator.as_str(), "In" | "NotIn");
            if takes_values && values.is_empty() {
                return Err(InvalidSelector::NoValues(key));
            }
            requirements.push(match expression.operator.as_str() {
                "In" => Requirement::In(key, values),
                "NotIn" => Requirement::NotIn(key, values),
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    return Err(InvalidSelector::Values(key));
                }
                "Exists" => Requirement::Exists(key),
                "DoesNotExist" => Requirement::DoesNotExist(key),
                other => return Err(InvalidSelector::Operator(other.to_owned())),
            });
        }
        requirements.sort_unstable();
        requirements.dedup();
        Ok(Selector { requirements })
    }

    /// What an absent selector means where that is everything.
    ///
    /// # Errors
    /// What in it makes no sense.
    pub fn or_everything(written: Option<&LabelSelector>) -> Result<Selector, InvalidSelector> {
        written.map_or_else(|| Ok(Selector::default()), Selector::new)
    }

    /// Whether it selects an object with these labels.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        })
    }

    /// A label of which every selected object has one of the values: of several the one with the fewest values.
    #[must_use]
    pub fn anchor(&self) -> Option<(&str, &[String])> {
        let anchors = self.requirements.iter().filter_map(|requirement| match requirement {
            Requirement::In(key, values) => Some((key.as_str(), values.as_slice())),
            _ => None,
        });
        anchors.min_by_key(|(_, values)| values.len())
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }
}

/// As `kubectl get -l` takes it: `app=web,tier in (a,b),!canary`; nothing for everything.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match requirement {
                Requirement::In(key, values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Requirement::In(key, values) => write!(f, "{key} in ({})", values.join(","))?,
                Requirement::NotIn(key, values) => write!(f, "{key} notin ({})", values.join(","))?,
                Requirement::Exists(key) => write!(f, "{key}")?,
                Requirement::DoesNotExist(key) => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(yaml: serde_json::Value) -> Result<Selector, InvalidSelector> {
        Selector::new(&serde_json::from_value(yaml).unwrap())
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn each_operator_means_what_kubernetes_says() {
        let (web, db, none) = (labels(&[("app", "web")]), labels(&[("app", "db")]), labels(&[]));
        let of = |operator: &str, values: &[&str]| {
            let expression = serde_json::json!({ "key": "app", "operator": operator, "values": values });
            let selector = selector(serde_json::json!({ "matchExpressions": [expression] })).unwrap();
            [&web, &db, &none].map(|labels| selector.matches(labels))
        };
        assert_eq!(of("In", &["web", "api"]), [true, false, false]);
        assert_eq!(of("NotIn", &["web"]), [false, true, true]);
        assert_eq!(of("Exists", &[]), [true, true, false]);
        assert_eq!(of("DoesNotExist", &[]), [false, false, true]);
        assert_eq!([&web, &db, &none].map(|labels| Selector::default().matches(labels)), [true; 3]);
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let bad = |operator: &str, values: &[&str]| {
            let expression = serde_json::json!({ "key": "app", "operator": operator, "values": values });
            selector(serde_json::json!({ "matchExpressions": [expression] })).unwrap_err()
        };
        assert_eq!(bad("in", &["web"]), InvalidSelector::Operator("in".into()));
        assert_eq!(bad("In", &[]), InvalidSelector::NoValues("app".into()));
        assert_eq!(bad("Exists", &["web"]), InvalidSelector::Values("app".into()));
    }

    #[test]
    fn selectors_that_say_the_same_are_equal_and_are_read_as_kubectl_writes_them() {
        let one = selector(serde_json::json!({ "matchLabels": { "b": "2", "a": "1" } })).unwrap();
        let expressions = serde_json::json!([
            { "key": "b", "operator": "In", "values": ["2", "2"] },
            { "key": "a", "operator": "In", "values": ["1"] },
        ]);
        let other = selector(serde_json::json!({ "matchExpressions": expressions })).unwrap();
        assert_eq!(one, other);
        assert_eq!(one.to_string(), "a=1,b=2");
        assert_eq!(one.anchor(), Some(("a", &["1".to_owned()][..])));
    }
}
