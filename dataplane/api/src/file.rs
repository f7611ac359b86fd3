//! The objects of a TOML file, with every fault at once.

use serde::de::DeserializeOwned;
use thiserror::Error;
use toml::{Table, Value};

use crate::check::check;
use crate::fault::{Fault, mend};
use crate::model::{Backends, Key, Object};

/// The tables that hold objects, each with the keys that an object of its kind cannot do without.
const KINDS: [(&str, &[&str]); 12] = [
    ("uplink", &["name", "interface"]),
    ("network", &["name", "vni"]),
    ("identity", &["name", "network"]),
    ("endpoint", &["name", "network", "attachment", "mac", "addresses"]),
    ("peer", &["name", "address"]),
    ("route", &["network", "prefix", "via"]),
    ("tier", &["name", "order", "default"]),
    ("policy", &["name", "network", "tier", "subjects", "directions"]),
    ("service", &["name", "network", "ports"]),
    ("backends", &["service", "ports"]),
    ("nat-pool", &["name", "network", "sources"]),
    ("egress-ip", &["name", "network", "address"]),
];

/// The tables of objects as they are written: `[[uplink]], [[network]]` and so on.
pub fn kinds() -> String {
    KINDS.map(|(kind, _)| format!("[[{kind}]]")).join(", ")
}

/// A text that is not TOML at all.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{file}: not TOML: {problem}")]
pub struct NotToml {
    /// The file.
    pub file: String,
    /// What the parser says, with line and column.
    pub problem: String,
}

impl From<NotToml> for Fault {
    fn from(error: NotToml) -> Self {
        Fault::new(error.file, "", format!("not TOML: {}", error.problem), "correct the syntax there")
    }
}

/// The objects of the TOML `text`, or everything that is wrong with them.
///
/// `file` is what faults call the text. The text may hold only the tables that [`kinds`] names.
pub fn parse_objects(text: &str, file: &str) -> Result<Vec<Object>, Vec<Fault>> {
    let (objects, mut faults) = read_objects(text, file).map_err(|error| vec![error.into()])?;
    faults.extend(check(&objects));
    if faults.is_empty() { Ok(objects) } else { Err(faults) }
}

/// The sound objects of the TOML `text` and the faults of the others; what [`check`] finds is not looked for.
pub(crate) fn read_objects(text: &str, file: &str) -> Result<(Vec<Object>, Vec<Fault>), NotToml> {
    let mut table = parse_table(text, file)?;
    let Rows { objects, mut faults, .. } = take_objects(&mut table, file);
    for key in table.keys() {
        faults.push(Fault::new(
            file,
            key,
            "is no table of objects",
            format!("only {} may be sent to the daemon", kinds()),
        ));
    }
    Ok((objects, faults))
}

/// The TOML `text` as one table.
pub fn parse_table(text: &str, file: &str) -> Result<Table, NotToml> {
    text.parse().map_err(|error: toml::de::Error| NotToml {
        file: file.to_owned(),
        problem: error.to_string().trim().to_owned(),
    })
}

/// The objects of a file.
#[derive(Debug, Default)]
pub struct Rows {
    /// Those that could be read, less the keys that could not be and have a default.
    pub objects: Vec<Object>,
    /// The keys of those that are there and could not be read, so that nobody calls them missing.
    pub unread: Vec<Key>,
    /// What could not be read. [`check`] is still to be asked about what the objects say.
    pub faults: Vec<Fault>,
}

/// Takes the tables of objects out of `table` and leaves the rest: the daemon's file has settings beside them.
pub fn take_objects(table: &mut Table, file: &str) -> Rows {
    let (mut objects, mut unread, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    for (kind, required) in KINDS {
        let Some(value) = table.remove(kind) else { continue };
        let rows = match value {
            Value::Array(rows) => rows,
            _ => {
                faults.push(Fault::new(file, kind, "is no list of tables", format!("write [[{kind}]]")));
                continue;
            }
        };
        for (i, row) in rows.into_iter().enumerate() {
            let Value::Table(row) = row else {
                faults.push(Fault::new(file, kind, "is no list of tables", format!("write [[{kind}]]")));
                continue;
            };
            let (called, key) = (called(file, kind, i, &row), key_of(kind, &row));
            let object = match kind {
                "uplink" => read_row(row, &called, required, &mut faults).map(Object::Uplink),
                "network" => read_row(row, &called, required, &mut faults).map(Object::Network),
                "endpoint" => read_row(row, &called, required, &mut faults).map(Object::Endpoint),
                "peer" => read_row(row, &called, required, &mut faults).map(Object::Peer),
                "route" => read_row(row, &called, required, &mut faults).map(Object::Route),
                "identity" => read_row(row, &called, required, &mut faults).map(Object::Identity),
                "tier" => read_row(row, &called, required, &mut faults).map(Object::Tier),
                "policy" => read_row(row, &called, required, &mut faults).map(Object::Policy),
                "service" => read_row(row, &called, required, &mut faults).map(Object::Service),
                "backends" => read_row(row, &called, required, &mut faults).map(Object::Backends),
                "nat-pool" => read_row(row, &called, required, &mut faults).map(Object::NatPool),
                _ => read_row(row, &called, required, &mut faults).map(Object::EgressIp),
            };
            match object {
                Some(object) => objects.push(object),
                None => unread.extend(key),
            }
        }
    }
    Rows { objects, unread, faults }
}

/// The key of a row, whatever else is wrong with it. Of kinds that no object names, none is made.
fn key_of(kind: &str, row: &Table) -> Option<Key> {
    let name = || row.get("name")?.as_str()?.parse().ok();
    match kind {
        "uplink" => name().map(Key::Uplink),
        "network" => name().map(Key::Network),
        "identity" => name().map(Key::Identity),
        "endpoint" => name().map(Key::Endpoint),
        "peer" => name().map(Key::Peer),
        "tier" => name().map(Key::Tier),
        "policy" => name().map(Key::Policy),
        "service" => name().map(Key::Service),
        _ => None,
    }
}

/// How a row is called in its faults: ``t.toml: endpoint "web"``, or by its place when it has no name.
fn called(file: &str, kind: &str, i: usize, row: &Table) -> String {
    let text = |key: &str| row.get(key).and_then(Value::as_str);
    match (kind, text("name"), text("prefix"), text("network")) {
        ("route", _, Some(prefix), Some(network)) => format!("{file}: route {prefix} in network {network:?}"),
        ("backends", ..) => match text("service") {
            Some(service) => {
                let slice =
                    text("slice").map_or_else(|| Backends::default_slice().to_string(), str::to_owned);
                format!("{file}: backends {slice:?} of service {service:?}")
            }
            None => format!("{file}: backends number {}", i + 1),
        },
        ("route", ..) | (_, None, ..) => format!("{file}: {kind} number {}", i + 1),
        (_, Some(name), ..) => format!("{file}: {kind} {name:?}"),
    }
}

/// Reads one table into a `T` and notes everything that is wrong with it: each key of `required` that is missing,
/// each unknown key and each bad value.
///
/// serde stops at the first fault, so the key at fault is noted, taken out, and the rest is read again. What can do
/// without that key is answered all the same, so that the faults of its other keys come to light too.
pub fn read_row<T: DeserializeOwned>(
    mut row: Table,
    object: &str,
    required: &[&str],
    faults: &mut Vec<Fault>,
) -> Option<T> {
    let before = faults.len();
    for key in required.iter().filter(|key| !row.contains_key(**key)) {
        faults.push(Fault::new(object, *key, "is missing", mend(key)));
    }
    loop {
        let error = match serde_path_to_error::deserialize(Value::Table(row.clone())) {
            Ok(read) => return Some(read),
            Err(error) => error,
        };
        let path = error.path().to_string();
        let problem = error.inner().message();
        let at_fault = path.split(['.', '[']).next().unwrap_or_default();
        if row.remove(at_fault).is_none() {
            // No key is to blame: one that is missing. Those of `required` and those taken out have been noted.
            if faults.len() == before {
                faults.push(Fault::new(object, "", problem, mend("")));
            }
            return None;
        }
        let mend =
            if problem.starts_with("unknown field") { "take it out, or correct it" } else { mend(&path) };
        faults.push(Fault::new(object, path, problem, mend));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Attachment, Network, RouteTarget, Tables};

    fn said(text: &str) -> Vec<String> {
        parse_objects(text, "t.toml").unwrap_err().iter().map(Fault::to_string).collect()
    }

    #[test]
    fn a_file_holds_all_kinds_of_objects() {
        let objects = parse_objects(
            r#"
            [[network]]
            name = "blue"
            vni = 100
            prefixes = ["10.1.0.0/16", "fd00:1::/64"]

            [[endpoint]]
            name = "web"
            network = "blue"
            attachment.veth.interface = "veth-web"
            mac = "02:00:00:00:00:01"
            addresses = ["10.1.0.7"]

            [[uplink]]
            name = "u0"
            interface = "eth0"
            copy = "zero-copy"
            busy-poll = { budget = 64, timeout-us = 20 }

            [[peer]]
            name = "node-b"
            address = "192.0.2.2"

            [[route]]
            network = "blue"
            prefix = "10.1.2.0/24"
            via.peer = "node-b"

            [[route]]
            network = "blue"
            prefix = "0.0.0.0/0"
            via = "host"
            "#,
            "t.toml",
        )
        .unwrap();
        let tables: Tables = objects.into_iter().collect();
        assert_eq!(tables.network[0].gateways, Network::default_gateways());
        assert_eq!(
            tables.endpoint[0].attachment,
            Attachment::Veth { interface: "veth-web".parse().unwrap() }
        );
        assert_eq!(tables.uplink[0].busy_poll.unwrap().timeout_us, 20);
        assert_eq!(tables.route[0].via, RouteTarget::Peer("node-b".parse().unwrap()));
        assert_eq!(tables.route[1].via, RouteTarget::Host);
        assert_eq!(tables.peer.len(), 1);
    }

    #[test]
    fn every_fault_of_a_file_is_said_at_once() {
        let said = said(
            r#"
            colour = "red"

            [[endpoint]]
            name = "web"
            mac = "ff:ff:ff:ff:ff:ff"
            attachment.veth.interface = "much-too-long-a-name"
            addresses = ["10.1.0.300", "10.1.0.1"]
            spelt-wrong = 1

            [[network]]
            vni = 16777216
            prefixes = ["10.1.0.1/16"]

            [[peer]]
            name = "p"
            address = "10.0.0.1"
            port = 70000

            [[route]]
            network = "blue"
            prefix = "10.0.0.0/8"
            via.uplink = { uplink = "u", gateway = "x" }
            "#,
        );
        let starts = [
            "t.toml: network number 1, `name`: is missing",
            "t.toml: network number 1, `prefixes[0]`: 10.1.0.1/16 has host bits set; 10.1.0.0/16 is the prefix",
            "t.toml: network number 1, `vni`: 16777216 does not fit in 24 bits",
            "t.toml: endpoint \"web\", `network`: is missing",
            "t.toml: endpoint \"web\", `addresses[0]`: invalid IP address",
            "t.toml: endpoint \"web\", `attachment.veth.interface`: \"much-too-long-a-name\" is no interface name",
            "t.toml: endpoint \"web\", `mac`: ff:ff:ff:ff:ff:ff is no unicast MAC address",
            "t.toml: endpoint \"web\", `spelt-wrong`: unknown field `spelt-wrong`",
            "t.toml: peer \"p\", `port`: invalid value: integer `70000`",
            "t.toml: route 10.0.0.0/8 in network \"blue\", `via.uplink.gateway`: invalid IP address",
            "t.toml, `colour`: is no table of objects",
        ];
        let found: Vec<&String> =
            starts.iter().filter_map(|s| said.iter().find(|l| l.starts_with(s))).collect();
        assert_eq!((found.len(), said.len()), (starts.len(), starts.len()), "{said:#?}");
    }

    #[test]
    fn an_object_that_cannot_be_read_is_known_by_its_key_and_one_with_a_bad_option_by_the_rest() {
        let mut table: Table = r#"
            [[network]]
            name = "blue"
            vni = 16777216
            [[uplink]]
            name = "u"
            interface = "eth0"
            queues = "many"
            [[peer]]
            name = "not a name"
            address = "10.0.0.1"
        "#
        .parse()
        .unwrap();
        let rows = take_objects(&mut table, "t.toml");
        assert_eq!(rows.unread, [Key::Network("blue".parse().unwrap())]);
        assert_eq!(rows.objects.iter().map(|it| it.key().to_string()).collect::<Vec<_>>(), ["uplink \"u\""]);
        let keys: Vec<&str> = rows.faults.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(keys, ["queues", "vni", "name"]);
    }

    #[test]
    fn broken_toml_is_said_with_its_line() {
        let said = said("[[network]]\nname = \n");
        assert_eq!(said.len(), 1);
        assert!(said[0].starts_with("t.toml: not TOML: "), "{said:?}");
        assert!(said[0].contains("line 2"), "{said:?}");
    }

    #[test]
    fn a_table_in_place_of_a_list_is_a_fault() {
        assert_eq!(
            said("[network]\nname = 'n'"),
            ["t.toml, `network`: is no list of tables; write [[network]]"]
        );
        assert_eq!(said("peer = [1]"), ["t.toml, `peer`: is no list of tables; write [[peer]]"]);
    }

    #[test]
    fn the_required_keys_are_just_those_without_a_default() {
        for (kind, required) in KINDS {
            let text = format!("[[{kind}]]");
            let said = said(&text);
            assert_eq!(said.len(), required.len(), "{said:?}");
            assert!(said.iter().all(|line| line.contains("is missing")), "{said:?}");
        }
        let least = r#"
            [[uplink]]
            name = "a"
            interface = "a"
            [[network]]
            name = "a"
            vni = 1
            [[endpoint]]
            name = "a"
            network = "a"
            attachment.tap.interface = "a"
            mac = "02:00:00:00:00:01"
            addresses = ["10.0.0.1"]
            [[peer]]
            name = "a"
            address = "10.0.0.1"
            [[route]]
            network = "a"
            prefix = "10.0.0.0/8"
            via = "blackhole"
            [[identity]]
            name = "a"
            network = "a"
            [[tier]]
            name = "a"
            order = 1
            default = "pass"
            [[policy]]
            name = "a"
            network = "a"
            tier = "a"
            subjects = "all"
            directions = ["ingress"]
            [[service]]
            name = "a"
            network = "a"
            cluster-ips = ["10.0.0.2"]
            ports = [{ name = "a", port = 1 }]
            [[backends]]
            service = "a"
            ports = [{ name = "a", port = 1 }]
            [[nat-pool]]
            name = "a"
            network = "a"
            sources = ["10.0.0.0/8"]
            [[egress-ip]]
            name = "a"
            network = "a"
            address = "192.0.2.1"
        "#;
        assert_eq!(parse_objects(least, "t.toml").map(|objects| objects.len()), Ok(KINDS.len()));
    }
}
