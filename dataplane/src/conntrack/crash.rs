//! Writers killed at any instruction: what they leave is adopted whole, and nothing in it is wrong.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use penstock_io::shared::{Opened, SharedRegion};
use penstock_io::{Ticks, TicksPerSecond};

use super::churn::{check_whole, churn};
use super::model::{all, opening};
use super::*;

const PLAN: Plan = Plan { capacity: 512, owners: 16, workers: 2 };
/// The directory of the region, in the environment of the process that is to be killed.
const DIRECTORY: &str = "PENSTOCK_CHURN_IN";
const NOW: Seconds = Seconds(1);

/// The same parties as before, so that what a connection is can be checked against what it was made as.
fn claim(connection: &Connection) -> Option<Parties> {
    assert_eq!(connection.decision.epoch & !1, 0, "a decision that nobody made");
    Some(connection.parties)
}

fn open_region(directory: &Path) -> (&'static SharedRegion, Opened) {
    let rate = TicksPerSecond(1_000_000_000);
    let (region, opened) =
        SharedRegion::open(directory, "connections", PLAN.layout(), Ticks::now(), rate).unwrap();
    (region.leak(), opened)
}

/// The part of the process that is killed: adopt, check, say so, and churn until the end.
fn churn_until_killed(directory: &Path) {
    let (region, opened) = open_region(directory);
    let seed = HashSeed::new(region.seed());
    let (table, adoption) = Table::over(Memory::shared(region), seed, PLAN, NOW, claim).unwrap();
    assert!(matches!(opened, Opened::Fresh | Opened::Adopted { .. }), "{opened:?}");
    check_whole(&table, NOW);
    assert_eq!(table.counts().live, u64::from(adoption.kept));
    println!("\nadopted {} {} {}", adoption.kept, adoption.broken, u8::from(matches!(opened, Opened::Fresh)));
    let settings = Settings::default();
    std::thread::scope(|scope| {
        for worker in 0..PLAN.workers {
            let (table, settings) = (&table, &settings);
            scope.spawn(move || churn(table, settings, worker, u32::MAX));
        }
    });
}

struct Victim {
    child: Child,
    adopted: Vec<u32>,
}

impl Victim {
    fn start(directory: &Path) -> Victim {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "conntrack::crash::writers_killed_in_mid_churn_leave_whole_connections",
            ])
            .env(DIRECTORY, directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let said = output.lines().map(Result::unwrap).find(|line| line.starts_with("adopted "));
        let said = said.expect("the process ended before it had adopted and checked the table");
        let adopted = said.split(' ').skip(1).map(|number| number.parse().unwrap()).collect();
        Victim { child, adopted }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn writers_killed_in_mid_churn_leave_whole_connections() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return churn_until_killed(Path::new(&directory));
    }
    let directory = PathBuf::from(format!("/dev/shm/penstock-test-{}-crash", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let (mut kept, mut broken) = (0, 0);
    for round in 0..20u64 {
        let victim = Victim::start(&directory);
        assert_eq!(victim.adopted[2] == 1, round == 0, "only the first finds a fresh region");
        (kept, broken) = (kept + victim.adopted[0], broken + victim.adopted[1]);
        // Uneven times, so that the kill falls anywhere.
        std::thread::sleep(Duration::from_micros(5_000 + round * 1_771));
        victim.kill();
    }
    let (region, opened) = open_region(&directory);
    assert!(matches!(opened, Opened::Adopted { owners: 20 }), "{opened:?}");
    let seed = HashSeed::new(region.seed());
    let (table, adoption) = Table::over(Memory::shared(region), seed, PLAN, NOW, claim).unwrap();
    check_whole(&table, NOW);
    assert!(kept + adoption.kept > 1000, "only {kept} connections were ever adopted: nothing was tested");
    println!(
        "{} connections adopted over 21 starts, {} dropped half-written",
        kept + adoption.kept,
        broken + adoption.broken
    );
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn damage_anywhere_in_an_entry_costs_that_entry_and_no_other() {
    // Control, addresses, the rest of both tuples, and life; of an IPv4 entry nothing is far. The other words are the
    // caller's, and counters.
    assert_eq!(entries_lost_to_damage(["10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.1"]), 6);
    assert_eq!(entries_lost_to_damage(["fd00::1", "fd00::2", "fd00::3", "2001:db8::1"]), 12);
}

/// Damages one word after the other of the second of three connections to the last of these hosts.
fn entries_lost_to_damage(hosts: [&str; 4]) -> u32 {
    let (mut dropped, settings) = (0, Settings::default());
    let [clients @ .., server] = hosts.map(|host| host.parse::<std::net::IpAddr>().unwrap());
    for word in 0..words::ENTRY_WORDS {
        let memory = Memory::private(8).unwrap();
        let seed = HashSeed::new([1, 2]);
        let plan = Plan { capacity: 8, ..PLAN };
        let (table, _) = Table::over(memory, seed, plan, NOW, |_| None).unwrap();
        for client in clients {
            let tuple = model::tuple(6, client, server, 7, 80).unwrap();
            let status = Status::of(State::SynSent);
            table.create(WorkerId(0), &opening(tuple, status, 0), Limits::NONE, &settings, NOW).unwrap();
        }
        let before = all(&table);
        let victim = memory.records.at(before[1].reference.index());
        let damaged =
            word.checked_sub(words::NEAR_WORDS).map_or_else(|| &victim[word], |far| &victim.far[far]);
        damaged.fetch_xor(1 << 57 | 1 << 21 | 1 << 3, words::Ordering::Relaxed);
        let (table, adoption) = Table::over(memory, seed, plan, NOW, claim_any).unwrap();
        let after = all(&table);
        assert_eq!(adoption.kept, after.len() as u32);
        let same = |c: &Connection| (c.reference, c.original, c.reply);
        for connection in [&before[0], &before[2]] {
            assert!(
                after.iter().any(|kept| same(kept) == same(connection)),
                "word {word} cost another entry"
            );
        }
        for connection in &after {
            assert!(
                before.iter().any(|kept| same(kept) == same(connection)),
                "word {word} made a connection"
            );
        }
        dropped += adoption.broken + adoption.expired;
    }
    dropped
}

fn claim_any(_: &Connection) -> Option<Parties> {
    Some(Parties::default())
}

#[test]
fn adoption_forgets_decisions_and_asks_whose_each_connection_is() {
    let memory = Memory::private(16).unwrap();
    let (seed, settings) = (HashSeed::new([1, 2]), Settings::default());
    let plan = Plan { capacity: 16, ..PLAN };
    let (table, _) = Table::over(memory, seed, plan, NOW, |_| None).unwrap();
    for number in 0..4 {
        let src = std::net::IpAddr::V4([10, 0, 0, number + 1].into());
        let tuple = model::tuple(17, src, "192.0.2.1".parse().unwrap(), 7, 80).unwrap();
        let mut opening = opening(tuple, Status::of(State::UdpUnreplied), 1);
        opening.decision = Decision { epoch: 9, verdict: 9 };
        let now = Seconds(1 + u32::from(number));
        table.create(WorkerId(0), &opening, Limits::NONE, &settings, now).unwrap();
    }
    let last = |connection: &Connection| match connection.original.src() {
        std::net::IpAddr::V4(v4) => v4.octets()[3],
        std::net::IpAddr::V6(_) => 0,
    };
    let parties = Parties { owner: Owner::endpoint(5), receiver: Owner::endpoint(6), backend: 6 };
    let (table, adoption) =
        Table::over(memory, seed, plan, Seconds(32), |connection| (last(connection) != 4).then_some(parties))
            .unwrap();
    assert_eq!(adoption, Adoption { kept: 1, expired: 2, disowned: 1, broken: 0 });
    let kept = all(&table);
    assert_eq!((kept[0].parties, kept[0].decision, last(&kept[0])), (parties, Decision::default(), 3));
    let shares = [5, 6, 1].map(|number| table.share(Owner::endpoint(number)));
    assert_eq!(shares, [(1, 0), (1, 0), (0, 0)]);
}

/// A connection of these parties from a host of that number.
fn create(table: &Table, host: u8, state: State, parties: Parties) -> ConnectionRef {
    let src = std::net::IpAddr::V4([10, 0, 0, host].into());
    let tuple = model::tuple(6, src, "192.0.2.1".parse().unwrap(), 7, 80).unwrap();
    let opening = Opening { parties, ..opening(tuple, Status::of(state), 1) };
    table.create(WorkerId(0), &opening, Limits::NONE, &Settings::default(), NOW).unwrap()
}

fn empty(capacity: u32) -> Table {
    let plan = Plan { capacity, ..PLAN };
    let memory = Memory::private(capacity).unwrap();
    Table::over(memory, HashSeed::new([1, 2]), plan, NOW, |_| None).unwrap().0
}

#[test]
fn connections_pass_to_other_parties_and_the_shares_follow() {
    let table = empty(16);
    let (former, mine) = (Owner::FORMER, Owner::endpoint(5));
    let of = |owner, receiver| Parties { owner, receiver, backend: 0 };
    let open = create(&table, 1, State::Established, of(former, former));
    let half_open = create(&table, 2, State::SynSent, of(former, Owner::NOBODY));
    let anothers = create(&table, 3, State::Established, of(Owner::endpoint(3), Owner::NOBODY));
    assert_eq!(table.resettle(0..16, |_| Fate::Stays), Resettled::default());
    let claim = |connection: &Connection| {
        let take = |owner| if owner == former { mine } else { owner };
        let Parties { owner, receiver, .. } = connection.parties;
        Fate::Passes(Parties { owner: take(owner), receiver: take(receiver), backend: 7 })
    };
    assert_eq!(table.resettle(0..16, claim), Resettled { passed: 3, ended: 0 });
    assert_eq!(table.resettle(0..16, claim), Resettled::default(), "once");
    let parties = |connection| table.view(connection).unwrap().parties;
    assert_eq!(parties(open), Parties { owner: mine, receiver: mine, backend: 7 });
    // Its handshake will be counted off against whom it was opened by.
    assert_eq!(parties(half_open), Parties { backend: 7, ..of(former, Owner::NOBODY) });
    assert_eq!(parties(anothers).owner, Owner::endpoint(3));
    let shares = || [mine, former, Owner::endpoint(3)].map(|owner| table.share(owner));
    assert_eq!(shares(), [(2, 0), (1, 1), (1, 0)]);
    while table.sweep(WorkerId(0), 16, Seconds(u32::MAX)).expired > 0 {}
    assert_eq!(shares(), [(0, 0); 3]);
}

#[test]
fn connections_of_an_endpoint_that_is_gone_end_and_their_entries_are_free() {
    let table = empty(8);
    let (gone, stays) = (Owner::endpoint(1), Owner::endpoint(2));
    let of = |owner, receiver| Parties { owner, receiver, backend: 0 };
    let [opened, received, others] = [(1, of(gone, stays)), (2, of(stays, gone)), (3, of(stays, stays))]
        .map(|(host, parties)| create(&table, host, State::Established, parties));
    create(&table, 4, State::SynSent, of(gone, Owner::NOBODY));
    let fate = |connection: &Connection| match connection.parties {
        Parties { owner, receiver, .. } if owner == gone || receiver == gone => Fate::Ends,
        _ => Fate::Stays,
    };
    assert_eq!(table.resettle(0..8, fate), Resettled { passed: 0, ended: 3 });
    assert!(table.is_live(others) && !table.is_live(opened) && !table.is_live(received));
    assert_eq!([gone, stays].map(|owner| table.share(owner)), [(0, 0), (2, 0)]);
    assert_eq!((table.counts().live, table.counts().removed), (1, 3));
    // Whoever creates finds the entries that the control thread freed.
    for host in 10..17 {
        create(&table, host, State::Established, of(stays, stays));
    }
    assert_eq!(table.counts().live, 8);
}
