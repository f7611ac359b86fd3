use std::net::IpAddr;
use std::sync::Arc;

use super::super::blocks::{Ask, Owner, Pool, PoolError, bury, collect, release};
use super::*;
use proptest::prelude::*;

fn owner(node: usize, holder: usize) -> Owner {
    Owner { node: format!("node{node}"), holder: format!("pod{holder}") }
}

fn pool(prefix: &str, block: u8) -> Pool {
    let prefixes = vec![prefix.parse().unwrap()];
    Pool { name: "p".into(), network: "default".into(), prefixes, block }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Every address that is given, and to whom.
fn given(blocks: &impl Blocks) -> BTreeMap<IpAddr, Owner> {
    run(blocks.list("p")).unwrap().into_iter().flat_map(|it| it.block.given).collect()
}

#[test]
fn a_node_takes_from_its_own_blocks_and_borrows_when_the_pool_is_full() {
    let blocks = MemoryBlocks::default();
    // Two blocks of 64 addresses.
    let pool = pool("10.0.0.0/25", 26);
    let take = |node, holder| run(pool.take(&blocks, &owner(node, holder), &Ask::default()));
    assert_eq!(take(1, 0).unwrap().to_string(), "10.0.0.1");
    assert_eq!(take(2, 0).unwrap().to_string(), "10.0.0.64");
    for holder in 1..63 {
        assert!(take(1, holder).unwrap() < "10.0.0.64".parse::<IpAddr>().unwrap());
    }
    // The first block is full, and there is no third one.
    assert_eq!(take(1, 63).unwrap().to_string(), "10.0.0.65");
    for holder in 1..62 {
        take(2, holder).unwrap();
    }
    assert!(matches!(take(3, 0), Err(PoolError::Exhausted { .. })));
    // Everything of node 1 is collected, and its block is another's to have.
    assert_eq!(run(collect(&blocks, "p", "node1", |_, _| false)).unwrap(), 64);
    assert_eq!(take(3, 0).unwrap().to_string(), "10.0.0.1");
}

#[test]
fn what_was_freed_is_given_again_after_everything_else() {
    let blocks = MemoryBlocks::default();
    let pool = pool("10.0.0.0/29", 29);
    let take = |holder| run(pool.take(&blocks, &owner(1, holder), &Ask::default())).unwrap().to_string();
    let free = |holder| run(release(&blocks, "p", &owner(1, holder))).unwrap();
    assert_eq!([take(0), take(1)], ["10.0.0.1", "10.0.0.2"]);
    free(0);
    assert_eq!([take(2), take(3), take(4), take(5)], ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    free(1);
    assert_eq!([take(6), take(7)], ["10.0.0.1", "10.0.0.2"]);
}

#[test]
fn what_was_freed_waits_for_the_rest_of_all_blocks_of_a_node() {
    let blocks = MemoryBlocks::default();
    // Blocks of four addresses.
    let pool = pool("10.0.0.0/28", 30);
    let take = |holder| run(pool.take(&blocks, &owner(1, holder), &Ask::default())).unwrap().to_string();
    let free = |holder| run(release(&blocks, "p", &owner(1, holder))).unwrap();
    (0..3).for_each(|holder| drop(take(holder)));
    assert_eq!(take(3), "10.0.0.4");
    free(1);
    assert_eq!([take(4), take(5), take(6)], ["10.0.0.5", "10.0.0.6", "10.0.0.7"]);
    assert_eq!(take(7), "10.0.0.2");
}

#[test]
fn an_address_that_is_asked_for_is_given_once() {
    let blocks = MemoryBlocks::default();
    let pool = pool("fd00::/112", 122);
    let wanted: IpAddr = "fd00::99".parse().unwrap();
    let take = |node, address| {
        let ask = Ask { requested: Some(address), ..Ask::default() };
        run(pool.take(&blocks, &owner(node, 0), &ask))
    };
    assert_eq!(take(1, wanted).unwrap(), wanted);
    assert!(matches!(take(2, wanted), Err(PoolError::Taken { .. })));
    assert!(matches!(take(2, "fd01::1".parse().unwrap()), Err(PoolError::Outside { .. })));
    run(release(&blocks, "p", &owner(1, 0))).unwrap();
    assert_eq!(take(2, wanted).unwrap(), wanted);
}

#[test]
fn what_is_preferred_is_given_when_it_is_free_and_what_is_reserved_is_not() {
    let blocks = MemoryBlocks::default();
    let pool = pool("10.0.0.0/24", 26);
    let (one, nine) = ("10.0.0.1".parse().unwrap(), "10.0.0.9".parse().unwrap());
    let ask = Ask { preferred: Some(nine), reserved: &[one], ..Ask::default() };
    let take = |holder| run(pool.take(&blocks, &owner(1, holder), &ask)).unwrap();
    assert_eq!(take(1), nine);
    assert_eq!(take(2).to_string(), "10.0.0.2");
}

#[test]
fn a_pool_that_was_changed_gives_nothing_that_older_blocks_hold() {
    let blocks = MemoryBlocks::default();
    let take = |pool: &Pool, node| run(pool.take(&blocks, &owner(node, 0), &Ask::default()));
    assert_eq!(take(&pool("10.0.0.0/24", 26), 1).unwrap().to_string(), "10.0.0.1");
    // Smaller blocks from now on: the first one that the old block does not hold.
    assert_eq!(take(&pool("10.0.0.0/24", 28), 2).unwrap().to_string(), "10.0.0.64");
    // Blocks of one address each: the first address of a pool is nobody's.
    assert_eq!(take(&pool("10.1.0.0/30", 32), 3).unwrap().to_string(), "10.1.0.1");
}

#[test]
fn what_a_dead_node_had_is_free_and_what_others_borrowed_of_it_stays_theirs() {
    let blocks = MemoryBlocks::default();
    let pool = pool("10.0.0.0/30", 30);
    let take = |node, holder| run(pool.take(&blocks, &owner(node, holder), &Ask::default())).unwrap();
    let (_, borrowed) = (take(1, 0), take(2, 0));
    assert_eq!(run(bury(&blocks, "p", |node| node == "node1")).unwrap(), 1);
    assert_eq!(given(&blocks), BTreeMap::from([(borrowed, owner(2, 0))]));
    assert_eq!(run(blocks.list("p")).unwrap()[0].block.node, "node2");
    run(bury(&blocks, "p", |_| true)).unwrap();
    assert_eq!(run(blocks.pools()).unwrap(), BTreeSet::new());
}

#[test]
fn a_file_keeps_blocks_for_all_who_share_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blocks");
    let pool = pool("10.0.0.0/24", 26);
    let threads: Vec<_> = (0..4)
        .map(|node| {
            let (path, pool) = (path.clone(), pool.clone());
            std::thread::spawn(move || {
                let blocks = FileBlocks::at(&path);
                let take = |holder| run(pool.take(&blocks, &owner(node, holder), &Ask::default())).unwrap();
                (0..20).map(take).collect::<Vec<IpAddr>>()
            })
        })
        .collect();
    let all: Vec<IpAddr> = threads.into_iter().flat_map(|it| it.join().unwrap()).collect();
    let distinct: BTreeSet<&IpAddr> = all.iter().collect();
    assert_eq!((all.len(), distinct.len()), (80, 80));
    assert_eq!(given(&FileBlocks::at(&path)).len(), 80);
}

/// Blocks as a node knows them that is told of changes late: what it lists is as old as its last refresh.
struct Remembered {
    shared: Arc<MemoryBlocks>,
    known: Mutex<Vec<Versioned>>,
}

impl Remembered {
    fn of(shared: &Arc<MemoryBlocks>) -> Self {
        Self { shared: Arc::clone(shared), known: Mutex::default() }
    }
}

impl Blocks for Remembered {
    async fn pools(&self) -> Result<BTreeSet<String>, BlocksError> {
        self.shared.pools().await
    }

    async fn list(&self, _: &str) -> Result<Vec<Versioned>, BlocksError> {
        tokio::task::yield_now().await;
        Ok(self.known.lock().unwrap().clone())
    }

    async fn refresh(&self) -> Result<(), BlocksError> {
        let listed = self.shared.list("p").await?;
        *self.known.lock().unwrap() = listed;
        Ok(())
    }

    async fn write(&self, pool: &str, block: Block, over: Option<u64>) -> Result<(), BlocksError> {
        tokio::task::yield_now().await;
        self.shared.write(pool, block, over).await
    }

    async fn remove(&self, pool: &str, prefix: IpNet, version: u64) -> Result<(), BlocksError> {
        self.shared.remove(pool, prefix, version).await
    }
}

/// What one node does to one of its pods.
#[derive(Debug, Clone)]
enum Step {
    Add,
    /// An address that it must be, by its place in the pool.
    AddAt(u8),
    Del,
    /// The node dies between what it does and the note of it, and collects when it is back.
    Crash,
    /// The node is gone for good with all of its pods, another cleans up after it, and one of its name comes.
    Die,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Add),
        2 => (0..16u8).prop_map(Step::AddAt),
        3 => Just(Step::Del),
        1 => Just(Step::Crash),
        1 => Just(Step::Die),
    ]
}

/// Lives a node's life; what its own records say in the end.
async fn live(node: usize, blocks: Remembered, steps: Vec<(usize, Step)>) -> BTreeMap<usize, IpAddr> {
    // Small, so that blocks are borrowed and the pool runs out.
    let pool = pool("10.0.0.0/28", 30);
    let mut model: BTreeMap<usize, IpAddr> = BTreeMap::new();
    for (holder, step) in steps {
        match step {
            Step::Add | Step::AddAt(_) if !model.contains_key(&holder) => {
                let requested = match step {
                    Step::AddAt(place) => Some(IpAddr::from([10, 0, 0, place])),
                    _ => None,
                };
                let ask = Ask { requested, ..Ask::default() };
                match pool.take(&blocks, &owner(node, holder), &ask).await {
                    Ok(address) => drop(model.insert(holder, address)),
                    Err(PoolError::Contended(_) | PoolError::Blocks(_)) => panic!("three nodes are no crowd"),
                    Err(_) => {}
                }
            }
            Step::Add | Step::AddAt(_) => {}
            Step::Del => {
                release(&blocks, "p", &owner(node, holder)).await.unwrap();
                model.remove(&holder);
            }
            Step::Crash => {
                let _lost = pool.take(&blocks, &owner(node, 100 + holder), &Ask::default()).await;
                let is_valid = |holder: &str, address: IpAddr| {
                    model.iter().any(|(pod, had)| format!("pod{pod}") == holder && *had == address)
                };
                blocks.refresh().await.unwrap();
                collect(&blocks, "p", &format!("node{node}"), is_valid).await.unwrap();
            }
            Step::Die => {
                blocks.refresh().await.unwrap();
                bury(&blocks, "p", |it| it == format!("node{node}")).await.unwrap();
                model.clear();
            }
        }
    }
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn nodes_at_the_same_time_give_no_address_twice_and_lose_none(
        steps in proptest::collection::vec((0..3usize, 0..8usize, step()), 1..60)
    ) {
        let blocks = Arc::new(MemoryBlocks::default());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let local = tokio::task::LocalSet::new();
        let mut nodes = Vec::new();
        for node in 0..3 {
            let own: Vec<_> = steps.iter().filter(|it| it.0 == node).map(|it| (it.1, it.2.clone())).collect();
            nodes.push(local.spawn_local(live(node, Remembered::of(&blocks), own)));
        }
        let models = runtime.block_on(local.run_until(async {
            let mut models = Vec::new();
            for node in nodes {
                models.push(node.await.unwrap());
            }
            models
        }));
        let mut expected = BTreeMap::new();
        for (node, model) in models.into_iter().enumerate() {
            for (holder, address) in model {
                prop_assert!(expected.insert(address, owner(node, holder)).is_none(), "{} is given twice", address);
            }
        }
        prop_assert_eq!(given(&*blocks), expected);
        // No two blocks share an address, and none is empty.
        let listed = runtime.block_on(blocks.list("p")).unwrap();
        for (i, it) in listed.iter().enumerate() {
            prop_assert!(!it.block.given.is_empty());
            prop_assert!(listed[..i].iter().all(|other| !other.block.prefix.contains(&it.block.prefix)));
        }
    }
}
