//! The session's fuzz target on inputs that get far: after a good handshake, or a part of one.

use penstock_vhost::fuzzing::session;
use proptest::prelude::*;

/// Steps of the handshake that the target knows.
const STEPS: u8 = 30;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn no_peer_can_do_more_than_end_its_own_session(
        steps in 0..STEPS,
        kind in any::<u8>(),
        acts in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        session(&[vec![steps, kind], acts].concat());
    }
}

#[test]
fn every_good_handshake_is_taken_as_far_as_it_goes() {
    for steps in 0..STEPS {
        for kind in 0..4 {
            session(&[steps, kind]);
        }
    }
}
