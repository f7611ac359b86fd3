//! Feature bits of virtio-net devices, of virtqueues and of vhost-user, and which of them we offer.
//!
//! Sources: `linux/virtio_net.h`, `linux/virtio_config.h`, `linux/virtio_ring.h` and sections 5.1.3 and 6 of the virtio
//! specification 1.3; the vhost-user specification for its own two.

/// The device takes packets with partial checksums (`VIRTIO_NET_F_CSUM`).
pub const CSUM: u64 = 1 << 0;
/// The guest takes packets with partial checksums (`VIRTIO_NET_F_GUEST_CSUM`).
pub const GUEST_CSUM: u64 = 1 << 1;
/// The device tells its MTU (`VIRTIO_NET_F_MTU`).
pub const MTU: u64 = 1 << 3;
/// The device has an address of its own (`VIRTIO_NET_F_MAC`).
pub const MAC: u64 = 1 << 5;
/// The guest takes TCP segments over IPv4 that are yet to be cut (`VIRTIO_NET_F_GUEST_TSO4`).
pub const GUEST_TSO4: u64 = 1 << 7;
/// The same over IPv6 (`VIRTIO_NET_F_GUEST_TSO6`).
pub const GUEST_TSO6: u64 = 1 << 8;
/// The guest takes TCP segments with ECN that are yet to be cut (`VIRTIO_NET_F_GUEST_ECN`).
pub const GUEST_ECN: u64 = 1 << 9;
/// The guest takes UDP datagrams that are yet to be fragmented (`VIRTIO_NET_F_GUEST_UFO`).
pub const GUEST_UFO: u64 = 1 << 10;
/// The device takes TCP segments over IPv4 that are yet to be cut (`VIRTIO_NET_F_HOST_TSO4`).
pub const HOST_TSO4: u64 = 1 << 11;
/// The same over IPv6 (`VIRTIO_NET_F_HOST_TSO6`).
pub const HOST_TSO6: u64 = 1 << 12;
/// The device takes TCP segments with ECN that are yet to be cut (`VIRTIO_NET_F_HOST_ECN`).
pub const HOST_ECN: u64 = 1 << 13;
/// The device takes UDP datagrams that are yet to be fragmented (`VIRTIO_NET_F_HOST_UFO`).
pub const HOST_UFO: u64 = 1 << 14;
/// A packet to the guest may be spread over several of its buffers (`VIRTIO_NET_F_MRG_RXBUF`).
pub const MRG_RXBUF: u64 = 1 << 15;
/// The device tells whether its link is up (`VIRTIO_NET_F_STATUS`).
pub const STATUS: u64 = 1 << 16;
/// There is a control queue (`VIRTIO_NET_F_CTRL_VQ`): the front-end's own business.
pub const CTRL_VQ: u64 = 1 << 17;
/// The guest can be told to announce itself (`VIRTIO_NET_F_GUEST_ANNOUNCE`).
pub const GUEST_ANNOUNCE: u64 = 1 << 21;
/// There may be several pairs of queues (`VIRTIO_NET_F_MQ`).
pub const MQ: u64 = 1 << 22;
/// All that we write is to be noted in the dirty log (`VHOST_F_LOG_ALL`, `linux/vhost_types.h`).
pub const LOG_ALL: u64 = 1 << 26;
/// A descriptor may hold header and packet alike (`VIRTIO_F_ANY_LAYOUT`), as version 1 always does.
pub const ANY_LAYOUT: u64 = 1 << 27;
/// Descriptors may point to tables of descriptors (`VIRTIO_RING_F_INDIRECT_DESC`).
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Notifications are asked for by index (`VIRTIO_RING_F_EVENT_IDX`).
pub const EVENT_IDX: u64 = 1 << 29;
/// Protocol features are spoken of (`VHOST_USER_F_PROTOCOL_FEATURES`).
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// The device is one of virtio 1 (`VIRTIO_F_VERSION_1`).
pub const VERSION_1: u64 = 1 << 32;
/// Queues are packed (`VIRTIO_F_RING_PACKED`).
pub const RING_PACKED: u64 = 1 << 34;
/// The device uses buffers in the order in which they were made available (`VIRTIO_F_IN_ORDER`).
pub const IN_ORDER: u64 = 1 << 35;
/// The guest takes UDP datagrams over IPv4 that are yet to be cut (`VIRTIO_NET_F_GUEST_USO4`).
pub const GUEST_USO4: u64 = 1 << 54;
/// The same over IPv6 (`VIRTIO_NET_F_GUEST_USO6`).
pub const GUEST_USO6: u64 = 1 << 55;
/// The device takes UDP datagrams that are yet to be cut (`VIRTIO_NET_F_HOST_USO`).
pub const HOST_USO: u64 = 1 << 56;

/// What every device offers, whatever its configuration. A device with several pairs of queues adds [`MQ`], one with a
/// configured MTU [`MTU`].
///
/// [`HOST_UFO`] and [`GUEST_UFO`] are not among them: Linux gave up making datagrams that are yet to be fragmented in 4.14,
/// and [`HOST_USO`] and its like took their place. [`CTRL_VQ`] is, so that a front-end may offer the queue; what it carries
/// stays there, and what comes of it reaches us as messages, such as which rings are enabled.
pub const OFFERED: u64 = CSUM
    | GUEST_CSUM
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_USO4
    | GUEST_USO6
    | HOST_TSO4
    | HOST_TSO6
    | HOST_USO
    | MRG_RXBUF
    | STATUS
    | GUEST_ANNOUNCE
    | CTRL_VQ
    | LOG_ALL
    | ANY_LAYOUT
    | INDIRECT_DESC
    | EVENT_IDX
    | PROTOCOL_FEATURES
    | VERSION_1
    | RING_PACKED
    | IN_ORDER;

/// The names of the bits that a set has, for people; bits without a name are told by number.
#[must_use]
pub fn names(features: u64) -> Vec<String> {
    let bits = (0..64).map(|bit| 1u64 << bit).filter(|bit| features & bit != 0);
    bits.map(|bit| match NAMES.iter().find(|(named, _)| *named == bit) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("bit {}", bit.trailing_zeros()),
    })
    .collect()
}

const NAMES: [(u64, &str); 28] = [
    (CSUM, "csum"),
    (GUEST_CSUM, "guest_csum"),
    (MTU, "mtu"),
    (MAC, "mac"),
    (GUEST_TSO4, "guest_tso4"),
    (GUEST_TSO6, "guest_tso6"),
    (GUEST_ECN, "guest_ecn"),
    (GUEST_UFO, "guest_ufo"),
    (HOST_TSO4, "host_tso4"),
    (HOST_TSO6, "host_tso6"),
    (HOST_ECN, "host_ecn"),
    (HOST_UFO, "host_ufo"),
    (MRG_RXBUF, "mrg_rxbuf"),
    (STATUS, "status"),
    (CTRL_VQ, "ctrl_vq"),
    (GUEST_ANNOUNCE, "guest_announce"),
    (MQ, "mq"),
    (LOG_ALL, "log_all"),
    (ANY_LAYOUT, "any_layout"),
    (INDIRECT_DESC, "indirect_desc"),
    (EVENT_IDX, "event_idx"),
    (PROTOCOL_FEATURES, "protocol_features"),
    (VERSION_1, "version_1"),
    (RING_PACKED, "ring_packed"),
    (IN_ORDER, "in_order"),
    (GUEST_USO4, "guest_uso4"),
    (GUEST_USO6, "guest_uso6"),
    (HOST_USO, "host_uso"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_offer_has_names_and_what_has_none_is_told_by_number() {
        assert!(names(OFFERED | MQ | MTU).iter().all(|name| !name.starts_with("bit")));
        assert_eq!(names(VERSION_1 | 1 << 63), ["version_1", "bit 63"]);
    }
}
