//! Writers killed at any instruction: what they leave is adopted whole, and nothing in it is wrong.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use penstock_io::shared::{Opened, SharedRegion};
use penstock_io::{Ticks, TicksPerSecond};

use super::model::{all, check_whole, churn, opening};
use super::*;

const PLAN: Plan = Plan { capacity: 512, owners: 8, workers: 2 };
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
    let words = words::ENTRY_WORDS;
    let (mut dropped, settings) = (0, Settings::default());
    for word in 0..words {
        let memory = Memory::private(8).unwrap();
        let seed = HashSeed::new([1, 2]);
        let plan = Plan { capacity: 8, ..PLAN };
        let (table, _) = Table::over(memory, seed, plan, NOW, |_| None).unwrap();
        for number in 0..3 {
            let src = std::net::IpAddr::V4([10, 0, 0, number + 1].into());
            let tuple = model::tuple(6, src, "192.0.2.1".parse().unwrap(), 7, 80).unwrap();
            let status = Status::of(State::SynSent);
            table.create(WorkerId(0), &opening(tuple, status, 0), Limits::NONE, &settings, NOW).unwrap();
        }
        let before = all(&table);
        let victim = before[1].reference.index() as usize;
        memory.records[victim][word].fetch_xor(1 << 57 | 1 << 21 | 1 << 3, words::Ordering::Relaxed);
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
    // Control, two tuples and life; the rest is the caller's, and counters.
    assert_eq!(dropped, 12);
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
    let parties = Parties { owner: Owner::endpoint(5), backend: 6 };
    let (table, adoption) =
        Table::over(memory, seed, plan, Seconds(32), |connection| (last(connection) != 4).then_some(parties))
            .unwrap();
    assert_eq!(adoption, Adoption { kept: 1, expired: 2, disowned: 1, broken: 0 });
    let kept = all(&table);
    assert_eq!((kept[0].parties, kept[0].decision, last(&kept[0])), (parties, Decision::default(), 3));
    assert_eq!((table.share(Owner::endpoint(5)), table.share(Owner::endpoint(1))), ((1, 0), (0, 0)));
}

#[test]
fn orphans_count_against_the_share_of_whoever_claims_them() {
    let (seed, settings) = (HashSeed::new([1, 2]), Settings::default());
    let plan = Plan { capacity: 16, ..PLAN };
    let (table, _) = Table::over(Memory::private(16).unwrap(), seed, plan, NOW, |_| None).unwrap();
    let [established, half_open, anothers] = [1, 2, 3].map(|number| {
        let src = std::net::IpAddr::V4([10, 0, 0, number].into());
        let tuple = model::tuple(6, src, "192.0.2.1".parse().unwrap(), 7, 80).unwrap();
        let state = if number == 2 { State::SynSent } else { State::Established };
        let mut opening = opening(tuple, Status::of(state), 1);
        opening.parties.owner = if number == 3 { Owner::endpoint(3) } else { Owner::NOBODY };
        table.create(WorkerId(0), &opening, Limits::NONE, &settings, NOW).unwrap()
    });
    let mine = Owner::endpoint(5);
    assert_eq!(table.reown(|_| None), 0);
    assert_eq!(table.reown(|_| Some(mine)), 1);
    assert_eq!(table.reown(|_| Some(mine)), 0, "once");
    let owner = |connection| table.view(connection).unwrap().parties.owner;
    assert_eq!(owner(established), mine);
    assert_eq!(owner(half_open), Owner::NOBODY);
    assert_eq!(owner(anothers), Owner::endpoint(3));
    let shares = || [mine, Owner::NOBODY, Owner::endpoint(3)].map(|owner| table.share(owner));
    assert_eq!(shares(), [(1, 0), (1, 1), (1, 0)]);
    while table.sweep(WorkerId(0), 16, Seconds(u32::MAX)).expired > 0 {}
    assert_eq!(shares(), [(0, 0); 3]);
}
