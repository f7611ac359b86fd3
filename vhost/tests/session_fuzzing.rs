//! The session's fuzz target on random inputs and on those that once crashed it.

use std::path::Path;

use penstock_vhost::session::fuzzing::messages;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn no_peer_can_do_more_than_end_its_own_session(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        messages(&bytes);
    }
}

#[test]
fn every_good_handshake_is_taken_as_far_as_it_goes() {
    for steps in 0..30 {
        for packed in [0, 1] {
            messages(&[steps, packed]);
        }
    }
}

#[test]
fn what_once_crashed_it_does_so_no_more() {
    let crashes = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/crashes/session");
    // No folder: nothing has crashed yet.
    for crash in std::fs::read_dir(crashes).into_iter().flatten() {
        let path = crash.unwrap().path();
        println!("{}", path.display());
        messages(&std::fs::read(path).unwrap());
    }
}
