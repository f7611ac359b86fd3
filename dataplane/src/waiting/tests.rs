use std::cell::RefCell;
use std::net::Ipv4Addr;

use penstock_io::{FramePool, Hugepages, Region};
use proptest::prelude::*;

use super::*;
use crate::conntrack::NetworkId;

const SECOND: u64 = 1000;

fn key(id: u32) -> FragmentKey {
    let (src, dst) = (Ipv4Addr::new(10, 0, 0, 1).into(), Ipv4Addr::new(10, 0, 0, 2).into());
    FragmentKey { network: NetworkId::default(), src, dst, id, protocol: 17 }
}

fn guest(frame: Frame, device: u16, since: u64, follows: Option<u32>) -> Guest {
    let cause = if follows.is_some() { Cause::FragmentAlone } else { Cause::NeighbourUnresolved };
    let (device, origin, since) = (DeviceId(device), Origin::Bare, Ticks(since));
    Guest { frame, origin, device, cause, since, follows: follows.map(key) }
}

/// Packet memory and an empty room.
fn room() -> (FramePool, WaitingRoom) {
    let region = Region::map(1024, Hugepages::Off).unwrap();
    (FramePool::new(region), WaitingRoom::new(TicksPerSecond(SECOND)))
}

/// Gives back everybody's memory.
fn clear(room: &mut WaitingRoom, pool: &mut FramePool) {
    while let Some(guest) = room.pop() {
        pool.free(guest.frame);
    }
    assert_eq!(room.len(), 0);
}

#[test]
fn neither_kind_takes_the_others_seats_and_nobody_takes_all() {
    let (mut pool, mut room) = room();
    let mut enter = |room: &mut WaitingRoom, device, follows| match room.enter(guest(
        pool.alloc().unwrap(),
        device,
        0,
        follows,
    )) {
        Ok(()) => true,
        Err(frame) => {
            pool.free(frame);
            false
        }
    };
    let fragments = (0..100).filter(|id| enter(&mut room, 1, Some(*id))).count();
    assert_eq!(fragments, EARLY_SHARE);
    assert_eq!((0..100).filter(|_| enter(&mut room, 1, None)).count(), SHARE);
    assert!(enter(&mut room, 2, Some(7)) && enter(&mut room, 2, None));
    for device in 3..10 {
        (0..100).for_each(|id| {
            enter(&mut room, device, Some(id));
            enter(&mut room, device, None);
        });
    }
    assert_eq!(room.len(), EARLY_SEATS + SEATS);
    clear(&mut room, &mut pool);
}

#[test]
fn a_first_fragment_calls_its_own_followers_in_the_order_in_which_they_came() {
    let (mut pool, mut room) = room();
    for (number, id) in [5, 6, 5, 7, 5].into_iter().enumerate() {
        assert!(room.enter(guest(pool.alloc().unwrap(), 1, number as u64, Some(id))).is_ok());
    }
    let mut called = Vec::new();
    while let Some(guest) = room.follower(&key(5)) {
        called.push(guest.since.0);
        pool.free(guest.frame);
    }
    assert_eq!((called, room.len()), (vec![0, 2, 4], 2));
    assert!(room.follower(&key(5)).is_none());
    clear(&mut room, &mut pool);
}

#[derive(Clone, Debug)]
enum Step {
    Enter {
        device: u16,
        follows: Option<u32>,
    },
    Pause(u64),
    /// Calls everybody; every second one must wait on.
    Call,
    Follow(u32),
    GiveUp,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u16..4, prop::option::of(0u32..4)).prop_map(|(device, follows)| Step::Enter { device, follows }),
        2 => (0u64..SECOND).prop_map(Step::Pause),
        1 => Just(Step::Call),
        1 => (0u32..4).prop_map(Step::Follow),
        2 => Just(Step::GiveUp),
    ]
}

#[test]
fn nobody_waits_for_longer_than_the_rooms_patience_however_often_he_is_called() {
    let (pool, room) = room();
    let both = RefCell::new((pool, room));
    let patience = |follows: bool| if follows { SECOND } else { 3 * SECOND };
    proptest!(|(steps in prop::collection::vec(step(), 1..200))| {
        let (pool, room) = &mut *both.borrow_mut();
        let (mut now, mut inside) = (0u64, 0usize);
        for step in steps {
            match step {
                Step::Enter { device, follows } => match room.enter(guest(pool.alloc().unwrap(), device, now, follows)) {
                    Ok(()) => inside += 1,
                    Err(frame) => pool.free(frame),
                },
                Step::Pause(ticks) => now += ticks,
                Step::Call => {
                    room.call();
                    let mut last = Ticks(0);
                    let mut stays = false;
                    while let Some(guest) = room.called() {
                        prop_assert!(guest.since >= last, "the oldest first");
                        last = guest.since;
                        stays = !stays;
                        if stays {
                            prop_assert!(room.enter(guest).is_ok(), "its seat is still there");
                        } else {
                            inside -= 1;
                            pool.free(guest.frame);
                        }
                    }
                }
                Step::Follow(id) => {
                    while let Some(guest) = room.follower(&key(id)) {
                        prop_assert_eq!(guest.follows, Some(key(id)));
                        inside -= 1;
                        pool.free(guest.frame);
                    }
                }
                Step::GiveUp => {
                    while let Some(guest) = room.give_up(Ticks(now)) {
                        prop_assert!(now - guest.since.0 >= patience(guest.follows.is_some()));
                        inside -= 1;
                        pool.free(guest.frame);
                    }
                    let waiting = room.hops.guests.iter().chain(&room.early.guests);
                    for guest in waiting {
                        prop_assert!(now - guest.since.0 < patience(guest.follows.is_some()));
                    }
                }
            }
            prop_assert_eq!(room.len(), inside);
        }
        clear(room, pool);
    });
}
