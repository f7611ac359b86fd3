//! What decides about one packet, on each side.

use std::fmt;

use penstock_policy::{Decider, Direction};
use serde::Serialize;

use super::{Judge, JudgeError, Party};

/// What decides on one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// The pod or the address.
    pub who: String,
    /// `egress` at the source, `ingress` at the destination.
    pub direction: String,
    /// Whether this side allows it.
    pub allowed: bool,
    /// What decided, in a few words.
    pub because: String,
    /// The policy that decided, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The rule of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The tier in which it was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// Every policy that selects the pod in this direction.
    pub selected_by: Vec<String>,
}

/// What decides about a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Whether it may go.
    pub allowed: bool,
    /// The source's side.
    pub egress: Side,
    /// The destination's side.
    pub ingress: Side,
}

impl Judge {
    /// Explains what decides about a packet to a port, or of a protocol without ports.
    ///
    /// # Errors
    /// Both ends are addresses outside.
    pub fn explain(
        &self,
        from: &Party,
        to: &Party,
        protocol: u8,
        port: Option<u16>,
    ) -> Result<Explanation, JudgeError> {
        if let (Party::Address(_), Party::Address(_)) = (from, to) {
            return Err(JudgeError::Outside);
        }
        let egress = self.explain_side(from, Direction::Egress, to, protocol, port);
        let ingress = self.explain_side(to, Direction::Ingress, from, protocol, port);
        Ok(Explanation { allowed: egress.allowed && ingress.allowed, egress, ingress })
    }

    fn explain_side(
        &self,
        own: &Party,
        direction: Direction,
        other: &Party,
        protocol: u8,
        port: Option<u16>,
    ) -> Side {
        let ruling = self.side(own, direction, other, protocol, port);
        let mut selected_by: Vec<String> =
            self.selecting(own, direction).iter().map(|name| written(name)).collect();
        selected_by.dedup();
        let mut side = Side {
            who: match own {
                Party::Pod(key) => {
                    self.places.get(key).map_or_else(|| key.to_string(), |place| place.title.clone())
                }
                Party::Address(address) => address.to_string(),
            },
            direction: direction.to_string(),
            allowed: ruling.allowed,
            because: String::new(),
            policy: None,
            rule: None,
            tier: None,
            selected_by,
        };
        side.because = match (own, ruling.decider) {
            (Party::Address(_), _) => "it is outside of the cluster, where no policy reaches".to_owned(),
            _ if own == other => "a pod always reaches itself".to_owned(),
            (_, None) => "it is on its node's network, where policies of pods do not reach".to_owned(),
            (_, Some(Decider::End)) if side.selected_by.is_empty() => {
                "no policy selects it in this direction".to_owned()
            }
            (_, Some(mut decider)) => {
                if let Decider::Rule(path) = &mut decider {
                    path.policy = written(&path.policy);
                }
                let said = decider.to_string();
                match decider {
                    Decider::Rule(path) => {
                        side.policy = Some(path.policy);
                        side.rule = Some(path.rule);
                        side.tier = Some(path.tier);
                    }
                    Decider::TierDefault(tier) => side.tier = Some(tier),
                    Decider::End => {}
                }
                said
            }
        };
        side
    }
}

/// The policy as its author knows it: `shop/web` for what became `shop/web/1f2e3d4c`.
fn written(policy: &str) -> String {
    policy.splitn(3, '/').take(2).collect::<Vec<_>>().join("/")
}

/// Three lines: the verdict, then each side.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |allowed: bool| if allowed { "allowed" } else { "denied" };
        writeln!(f, "{} => {}: {}", self.egress.who, self.ingress.who, word(self.allowed))?;
        for side in [&self.egress, &self.ingress] {
            write!(f, "  {} of {}: {}: {}", side.direction, side.who, word(side.allowed), side.because)?;
            if side.policy.is_none() && !side.selected_by.is_empty() {
                write!(f, " (selected by {})", side.selected_by.join(", "))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
