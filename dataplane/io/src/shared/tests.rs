use super::*;

const RATE: TicksPerSecond = TicksPerSecond(1000);
const LAYOUT: Layout = Layout { version: 3, words: 5000, shape: 7 };

/// A directory of its own for each test, removed at its end.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Directory {
        let path = Path::new("/dev/shm").join(format!("penstock-test-{}-{test}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Directory(path)
    }

    fn open(&self, layout: Layout, now: u64) -> Result<(SharedRegion, Opened), SharedError> {
        SharedRegion::open(&self.0, "table", layout, Ticks(now), RATE)
    }

    fn corrupt(&self, word: usize, with: u64) {
        let file = OpenOptions::new().write(true).open(self.0.join("table")).unwrap();
        file.write_all_at(&with.to_ne_bytes(), word as u64 * 8).unwrap();
    }

    fn set_aside(&self, layout: Layout, now: u64) -> Unfit {
        let (region, opened) = self.open(layout, now).unwrap();
        assert!(region.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
        match opened {
            Opened::SetAside { why, to } => {
                assert!(to.exists());
                why
            }
            other => panic!("{other:?} instead of set aside"),
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn shared_words_survive_their_owner_with_their_seed_and_their_clock() {
    let directory = Directory::new("survive");
    let (first, opened) = directory.open(LAYOUT, 5_000).unwrap();
    assert!(matches!(opened, Opened::Fresh));
    assert_eq!(first.words().len(), LAYOUT.words);
    assert_eq!(first.words().as_ptr() as usize % HUGE, HEADER_BYTES);
    first.words()[LAYOUT.words - 1].store(42, Ordering::Relaxed);
    let (seed, clock) = (first.seed(), first.clock());
    drop(first);
    let (second, opened) =
        SharedRegion::open(&directory.0, "table", LAYOUT, Ticks(9_999), TicksPerSecond(77)).unwrap();
    assert!(matches!(opened, Opened::Adopted { owners: 1 }), "{opened:?}");
    assert_eq!(second.words()[LAYOUT.words - 1].load(Ordering::Relaxed), 42);
    assert_eq!((second.seed(), second.clock()), (seed, clock));
    assert_eq!(second.clock().seconds(Ticks(9_999)), 5);
}

#[test]
fn shared_words_have_one_owner_at_a_time() {
    let directory = Directory::new("owner");
    let (held, _) = directory.open(LAYOUT, 0).unwrap();
    match directory.open(LAYOUT, 0) {
        Err(SharedError::InUse { owner, .. }) => assert_eq!(owner, u64::from(std::process::id())),
        other => panic!("{:?} instead of in use", other.map(|(_, opened)| opened)),
    }
    drop(held);
    assert!(matches!(directory.open(LAYOUT, 0), Ok((_, Opened::Adopted { .. }))));
}

#[test]
fn another_version_or_capacity_is_set_aside_by_name() {
    let directory = Directory::new("version");
    drop(directory.open(LAYOUT, 0).unwrap());
    let why = directory.set_aside(Layout { version: 4, ..LAYOUT }, 0);
    assert_eq!(why.to_string(), "it has layout 1.3, and this release works with layout 1.4");
    let why = directory.set_aside(Layout { version: 4, words: 6000, ..LAYOUT }, 0);
    assert_eq!(why, Unfit::Shape { found: 5000, expected: 6000 });
    let why = directory.set_aside(Layout { version: 4, words: 6000, shape: 8 }, 0);
    assert_eq!(why, Unfit::Shape { found: 6000, expected: 6000 });
}

#[test]
fn a_damaged_header_is_never_adopted() {
    let directory = Directory::new("damaged");
    for word in VERSIONS_AT..=CHECKSUM_AT {
        drop(directory.open(LAYOUT, 0).unwrap());
        directory.corrupt(word, 0x0000_0001_0000_0009);
        let why = directory.set_aside(LAYOUT, 0);
        assert_eq!(why, Unfit::Damaged, "word {word}");
    }
    directory.corrupt(MAGIC_AT, 0);
    assert_eq!(directory.set_aside(LAYOUT, 0), Unfit::Unfinished);
    fs::write(directory.0.join("table"), "hello").unwrap();
    assert_eq!(directory.set_aside(LAYOUT, 0), Unfit::Unfinished);
    let file = OpenOptions::new().write(true).open(directory.0.join("table")).unwrap();
    file.set_len(HEADER_BYTES as u64 + 8).unwrap();
    assert_eq!(directory.set_aside(LAYOUT, 0), Unfit::Damaged);
}

#[test]
fn a_shared_region_from_before_a_reboot_is_told_from_one_before_a_restart() {
    let directory = Directory::new("boot");
    let (region, _) = directory.open(LAYOUT, 100).unwrap();
    let header = region.header_words();
    header[BOOT_AT].fetch_xor(1, Ordering::Relaxed);
    let sum = checksum(std::array::from_fn(|at| region.header(at)));
    header[CHECKSUM_AT].store(sum, Ordering::Relaxed);
    drop(region);
    assert_eq!(directory.set_aside(LAYOUT, 200), Unfit::OtherBoot);
    assert_eq!(directory.set_aside(LAYOUT, 199), Unfit::ClockWentBack);
}

#[test]
fn a_shared_region_that_does_not_fit_its_file_system_is_refused_with_the_mend() {
    let directory = Directory::new("room");
    let huge = Layout { words: 1 << 40, ..LAYOUT };
    let Err(error) = directory.open(huge, 0) else { panic!("eight tebibytes fitted") };
    assert!(matches!(error, SharedError::NoRoom { .. }), "{error}");
    assert!(matches!(directory.open(LAYOUT, 0), Ok((_, Opened::Fresh))));
}
