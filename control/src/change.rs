//! The commands that change the configuration.

use std::io::Read;
use std::path::Path;

use penstock_api::client::{Client, ClientError, Live};
use penstock_api::file::parse_objects;
use penstock_api::model::{Key, Object};
use serde_json::json;

use crate::args::Kind;
use crate::failure::Failure;
use crate::output::Output;
use crate::units;

/// Reads the objects of a file; `-` is standard input.
pub(crate) fn read(file: &Path) -> Result<Vec<Object>, Failure> {
    let (name, text) = if file == Path::new("-") {
        let mut text = String::new();
        let read = std::io::stdin().lock().read_to_string(&mut text).map(|_| text);
        ("standard input".to_owned(), read)
    } else {
        (file.display().to_string(), std::fs::read_to_string(file))
    };
    let text = text.map_err(|source| Failure::Io { what: format!("reading {name}"), source })?;
    parse_objects(&text, &name).map_err(Failure::Faults)
}

/// The keys that `names` mean.
pub(crate) fn keys(kind: Kind, names: &[String]) -> Result<Vec<Key>, Failure> {
    names.iter().map(|name| key(kind, name)).collect()
}

fn key(kind: Kind, name: &str) -> Result<Key, Failure> {
    let wrong = |why: penstock_api::model::Invalid| Failure::Usage(why.to_string());
    Ok(match kind {
        Kind::Uplink => Key::Uplink(name.parse().map_err(wrong)?),
        Kind::Network => Key::Network(name.parse().map_err(wrong)?),
        Kind::Endpoint => Key::Endpoint(name.parse().map_err(wrong)?),
        Kind::Peer => Key::Peer(name.parse().map_err(wrong)?),
        Kind::Identity => Key::Identity(name.parse().map_err(wrong)?),
        Kind::Tier => Key::Tier(name.parse().map_err(wrong)?),
        Kind::Policy => Key::Policy(name.parse().map_err(wrong)?),
        Kind::Service => Key::Service(name.parse().map_err(wrong)?),
        Kind::NatPool => Key::NatPool(name.parse().map_err(wrong)?),
        Kind::EgressIp => Key::EgressIp(name.parse().map_err(wrong)?),
        Kind::Backends => {
            // No name has a colon.
            let (service, slice) = name.split_once(':').ok_or_else(|| {
                Failure::Usage(format!(
                    "{name:?} names no backends: write SERVICE:SLICE, as in shop/web:main"
                ))
            })?;
            Key::Backends { service: service.parse().map_err(wrong)?, slice: slice.parse().map_err(wrong)? }
        }
        Kind::Route => {
            // A network's name has no colon, an IPv6 prefix has several.
            let (network, prefix) = name.split_once(':').ok_or_else(|| {
                Failure::Usage(format!(
                    "{name:?} names no route: write NETWORK:PREFIX, as in blue:10.1.2.0/24"
                ))
            })?;
            Key::Route { network: network.parse().map_err(wrong)?, prefix: prefix.parse().map_err(wrong)? }
        }
    })
}

/// Adds or replaces `objects`.
pub(crate) async fn apply(client: &mut Client, objects: &[Object], out: &mut Output) -> Result<(), Failure> {
    said(out, &format!("{} applied", number(objects.len())), client.upsert(objects).await)
}

/// Makes `objects` the configuration.
pub(crate) async fn resync(client: &mut Client, objects: &[Object], out: &mut Output) -> Result<(), Failure> {
    said(out, &format!("{} in place", number(objects.len())), client.resync(objects).await)
}

/// Removes the objects of `keys`.
pub(crate) async fn delete(client: &mut Client, keys: &[Key], out: &mut Output) -> Result<(), Failure> {
    said(out, &format!("{} deleted", number(keys.len())), client.delete(keys).await)
}

fn number(objects: usize) -> String {
    format!("{objects} {}", if objects == 1 { "object" } else { "objects" })
}

fn said(out: &mut Output, what: &str, outcome: Result<Live, ClientError>) -> Result<(), Failure> {
    let Live { generation, took } = outcome?;
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let live = json!({ "generation": generation, "took_us": took_us });
    out.show(&live, |_| {
        let took = match took_us {
            0..1000 => format!("{took_us} us"),
            1000..1_000_000 => format!("{:.1} ms", took_us as f64 / 1e3),
            _ => units::span(took_us / 1000),
        };
        format!("{what}; generation {generation} is live on every worker after {took}\n")
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_and_backends_are_named_by_two_parts() {
        let key = |name| key(Kind::Route, name).map(|key| key.to_string());
        assert_eq!(key("blue:10.1.2.0/24").unwrap(), "route 10.1.2.0/24 in network \"blue\"");
        assert_eq!(key("a/b:fd00:1::/64").unwrap(), "route fd00:1::/64 in network \"a/b\"");
        let backends = super::key(Kind::Backends, "shop/web:main").map(|key| key.to_string());
        assert_eq!(backends.unwrap(), "backends \"main\" of service \"shop/web\"");
        assert!(matches!(super::key(Kind::Backends, "shop/web"), Err(Failure::Usage(_))));
        for bad in ["10.1.2.0/24", "blue:10.1.2.3/24", ":10.0.0.0/8", "blue:"] {
            assert!(matches!(key(bad), Err(Failure::Usage(_))), "{bad}");
        }
    }
}
