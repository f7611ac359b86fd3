//! Schemas of what our resources borrow from Kubernetes, whose types have none here.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A label selector, as `metav1.LabelSelector` of the Kubernetes API reference.
pub(super) fn label_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "nullable": true,
        "properties": {
            "matchLabels": { "type": "object", "additionalProperties": { "type": "string" } },
            "matchExpressions": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": { "type": "string" },
                        "operator": { "type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"] },
                        "values": { "type": "array", "items": { "type": "string" } },
                    },
                },
            },
        },
    })
}

/// Prefixes, none of them there twice.
pub(super) fn prefixes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 256,
        "x-kubernetes-list-type": "set",
        "items": prefix_schema(),
    })
}

/// The same, at least one.
pub(super) fn some_prefixes(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = prefixes(generator);
    schema.insert("minItems".to_owned(), 1.into());
    schema
}

/// One prefix.
pub(super) fn prefix(_: &mut SchemaGenerator) -> Schema {
    prefix_schema()
}

fn prefix_schema() -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 49,
        "x-kubernetes-validations": [{
            "rule": "isCIDR(self) && cidr(self) == cidr(self).masked()",
            "message": "must be a prefix without host bits, as in 10.1.0.0/16 or fd00:1::/64",
        }],
    })
}

/// Addresses, none of them there twice.
pub(super) fn addresses(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 2,
        "x-kubernetes-list-type": "set",
        "items": address_schema(),
    })
}

/// One address.
pub(super) fn address(_: &mut SchemaGenerator) -> Schema {
    address_schema()
}

fn address_schema() -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 45,
        "x-kubernetes-validations": [{
            "rule": "isIP(self)",
            "message": "must be an address, as in 10.1.0.7 or fd00::7",
        }],
    })
}
