// SPDX-License-Identifier: Apache-2.0
/*
 * Decides which packets leave the kernel's path for an AF_XDP socket.
 *
 * On an uplink it takes what is the dataplane's and nothing else, so that the node stays reachable whatever becomes of
 * the dataplane. Without a socket on the queue a tunnel's packet goes to the kernel; one of a pod, a service or a
 * translated connection is dropped: the kernel knows nothing of them and would reset what is to go on with the next
 * dataplane. On a pod's interface it takes everything; without a socket the packet is dropped, so that a pod is never
 * without its policy.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define UPLINK 0
#define POD 1

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV6_MORE_FRAGMENTS 0x0001
#define IPV6_FRAGMENT_OFFSET 0xfff8
#define VLAN_ID 0x0fff

/* RFC 792 and RFC 1191; linux/icmp.h would bring the C library's headers along. */
#define ICMP_ECHO_REPLY 0
#define ICMP_UNREACHABLE 3
#define ICMP_FRAGMENTATION_NEEDED 4
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12
/* RFC 4443 */
#define ICMPV6_UNREACHABLE 1
#define ICMPV6_PACKET_TOO_BIG 2
#define ICMPV6_PARAMETER_PROBLEM 4
#define ICMPV6_ECHO_REPLY 129

/* Whose a packet on an uplink is: what becomes of one that is taken when there is no socket, or zero. */
enum owner {
	KERNEL = 0,
	CONNECTION = XDP_DROP,
	TUNNEL = XDP_PASS,
};

/* Set before the program is loaded; the verifier removes what the role does not need. */
const volatile __u8 role = UPLINK;
/* The VLAN whose frames are looked into; 0: frames with a tag go to the kernel. */
const volatile __u16 vlan = 0;

/* An IPv6 address, or an IPv4 address in its IPv4-mapped form (RFC 4291, section 2.5.5.2). */
struct address {
	__u8 bytes[16];
};

struct node_port {
	struct address address;
	__u8 protocol;
	__u8 zero;
	__be16 port;
};

/* An address and the bits that a run of its ports begin with: any list of ranges is a few of these. */
struct port_prefix {
	__u32 bits;
	struct address address;
	__be16 port;
	__u8 zero[2];
};

struct prefix4 {
	__u32 bits;
	__u8 bytes[4];
};

struct prefix6 {
	__u32 bits;
	__u8 bytes[16];
};

struct vlan_tag {
	__be16 control;
	__be16 protocol;
};

/* The first four bytes of TCP, UDP and SCTP. */
struct ports {
	__be16 source;
	__be16 dest;
};

/* RFC 8200, section 4.5. */
struct fragment_head {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};

/* What the fragments of a packet have in common. */
struct fragmented {
	struct address source;
	struct address dest;
	__be32 id;
	__u8 protocol;
	__u8 zero[3];
};

/* What precedes the quoted packet of an ICMP or ICMPv6 error. */
struct icmp_head {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id;
	__be16 rest;
};

/* By a map of this name the loader knows a program as its own, whichever version loaded it. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} penstock_xsks SEC(".maps");

/* Where an interface's queues begin among the sockets, and how many it has. */
struct place {
	__u32 first;
	__u32 queues;
};

/*
 * The pods' interfaces, by number. One program serves all of them: the kernel waits for a grace period whenever a program
 * is attached that is attached nowhere else, or comes off where it was attached last.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct place);
} pods SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct address);
	__type(value, __u8);
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __be16);
	__type(value, __u8);
} tunnel_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix4);
	__type(value, __u8);
} prefixes4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix6);
	__type(value, __u8);
} prefixes6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct node_port);
	__type(value, __u8);
} node_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_prefix);
	__type(value, __u8);
} snat_ports SEC(".maps");

/* Packets whose first fragment was taken: the later ones, which carry no ports, go with it. Those seen longest ago give way. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragmented);
	__type(value, __u8);
} fragments SEC(".maps");

static __always_inline struct address mapped(__be32 ipv4)
{
	struct address address = { .bytes = { [10] = 0xff, [11] = 0xff } };

	__builtin_memcpy(&address.bytes[12], &ipv4, sizeof(ipv4));
	return address;
}

static __always_inline bool is_tunnel_port(__be16 port)
{
	return bpf_map_lookup_elem(&tunnel_ports, &port) != NULL;
}

static __always_inline bool is_endpoint(const struct address *address)
{
	return bpf_map_lookup_elem(&endpoints, address) != NULL;
}

static __always_inline bool is_snat_port(const struct address *address, __be16 port)
{
	struct port_prefix key = { .bits = 8 * (sizeof(key.address) + sizeof(key.port)), .address = *address, .port = port };

	return bpf_map_lookup_elem(&snat_ports, &key) != NULL;
}

static __always_inline bool is_node_port(const struct address *address, __u8 protocol, __be16 port)
{
	struct node_port key = { .address = *address, .protocol = protocol, .port = port };

	return bpf_map_lookup_elem(&node_ports, &key) != NULL;
}

/* Whether the kernel has this very connection: it may have opened it by a port of the range before the range was taken. */
static __always_inline bool is_kernels(struct xdp_md *ctx, struct bpf_sock_tuple *tuple, __u32 size)
{
	struct bpf_sock *sock = bpf_skc_lookup_tcp(ctx, tuple, size, BPF_F_CURRENT_NETNS, 0);
	bool connected;

	if (!sock)
		return false;
	connected = sock->state != BPF_TCP_LISTEN;
	bpf_sk_release(sock);
	return connected;
}

/* TCP, UDP or SCTP to one of the node's own addresses. The tuple has the addresses, and room for the ports. */
static __always_inline enum owner owner_of_ports(struct xdp_md *ctx, struct bpf_sock_tuple *tuple, bool ipv6,
						 const struct address *dest, __u8 protocol, void *at, void *end)
{
	const struct ports *ports = at;

	if ((void *)(ports + 1) > end)
		return KERNEL;
	if (protocol == IPPROTO_UDP && is_tunnel_port(ports->dest) && is_endpoint(dest))
		return TUNNEL;
	if (is_node_port(dest, protocol, ports->dest))
		return CONNECTION;
	if (!is_snat_port(dest, ports->dest))
		return KERNEL;
	if (protocol != IPPROTO_TCP)
		return CONNECTION;
	if (ipv6) {
		tuple->ipv6.sport = ports->source;
		tuple->ipv6.dport = ports->dest;
	} else {
		tuple->ipv4.sport = ports->source;
		tuple->ipv4.dport = ports->dest;
	}
	return is_kernels(ctx, tuple, ipv6 ? sizeof(tuple->ipv6) : sizeof(tuple->ipv4)) ? KERNEL : CONNECTION;
}

/* A fragment to one of the node's own addresses: the first is taken if it is a service's or a translated connection's, and the
 * later ones go with it. All others are the kernel's, which puts them together; nobody sends tunnel packets in fragments.
 */
static __always_inline enum owner owner_of_fragment(const struct fragmented *packet, bool first, void *at, void *end)
{
	const struct ports *ports = at;
	const struct icmp_head *icmp = at;
	__u8 present = 1;
	bool takes;

	if (!first)
		return bpf_map_lookup_elem(&fragments, packet) ? CONNECTION : KERNEL;
	switch (packet->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		if ((void *)(ports + 1) > end)
			return KERNEL;
		takes = is_node_port(&packet->dest, packet->protocol, ports->dest) || is_snat_port(&packet->dest, ports->dest);
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((void *)(icmp + 1) > end)
			return KERNEL;
		takes = icmp->type == (packet->protocol == IPPROTO_ICMP ? ICMP_ECHO_REPLY : ICMPV6_ECHO_REPLY) &&
			is_snat_port(&packet->dest, icmp->id);
		break;
	default:
		return KERNEL;
	}
	if (!takes)
		return KERNEL;
	bpf_map_update_elem(&fragments, packet, &present, BPF_ANY);
	return CONNECTION;
}

/* The quoted packet of an ICMP error is one that this node sent: by a tunnel, if the error is about its size, since the path's
 * MTU must reach the dataplane; or as a translated connection's or a service's.
 */
static __always_inline enum owner owner_of_sent(const struct address *source, __u8 protocol, void *at, void *end, bool too_big)
{
	const struct icmp_head *icmp = at;
	const struct ports *ports = at;

	if ((void *)(ports + 1) > end)
		return KERNEL;
	switch (protocol) {
	case IPPROTO_UDP:
		if (too_big && is_tunnel_port(ports->dest) && is_endpoint(source))
			return TUNNEL;
	case IPPROTO_TCP:
	case IPPROTO_SCTP:
		if (is_snat_port(source, ports->source) || is_node_port(source, protocol, ports->source))
			return CONNECTION;
		return KERNEL;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((void *)(icmp + 1) <= end && is_snat_port(source, icmp->id))
			return CONNECTION;
		return KERNEL;
	default:
		return KERNEL;
	}
}

static __always_inline enum owner owner_of_quoted4(void *at, void *end, bool too_big)
{
	const struct iphdr *ip = at;
	struct address source;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5 || ip->frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET))
		return KERNEL;
	source = mapped(ip->saddr);
	return owner_of_sent(&source, ip->protocol, at + ip->ihl * 4, end, too_big);
}

static __always_inline enum owner owner_of_quoted6(void *at, void *end, bool too_big)
{
	const struct ipv6hdr *ip = at;
	struct address source;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return KERNEL;
	__builtin_memcpy(&source, &ip->saddr, sizeof(source));
	return owner_of_sent(&source, ip->nexthdr, (void *)(ip + 1), end, too_big);
}

static __always_inline enum owner owner_of_ipv4(struct xdp_md *ctx, void *at, void *end)
{
	const struct iphdr *ip = at;
	const struct icmp_head *icmp;
	struct prefix4 prefix = { .bits = 32 };
	struct bpf_sock_tuple tuple = {};
	struct address dest;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return KERNEL;
	__builtin_memcpy(prefix.bytes, &ip->daddr, sizeof(prefix.bytes));
	if (bpf_map_lookup_elem(&prefixes4, &prefix))
		return CONNECTION;
	dest = mapped(ip->daddr);
	at += ip->ihl * 4;
	if (ip->frag_off & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET)) {
		struct fragmented packet = {
			.source = mapped(ip->saddr), .dest = dest, .id = ip->id, .protocol = ip->protocol,
		};

		return owner_of_fragment(&packet, !(ip->frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET)), at, end);
	}
	switch (ip->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		tuple.ipv4.saddr = ip->saddr;
		tuple.ipv4.daddr = ip->daddr;
		return owner_of_ports(ctx, &tuple, false, &dest, ip->protocol, at, end);
	case IPPROTO_ICMP:
		icmp = at;
		if ((void *)(icmp + 1) > end)
			return KERNEL;
		if (icmp->type == ICMP_ECHO_REPLY)
			return is_snat_port(&dest, icmp->id) ? CONNECTION : KERNEL;
		if (icmp->type != ICMP_UNREACHABLE && icmp->type != ICMP_TIME_EXCEEDED && icmp->type != ICMP_PARAMETER_PROBLEM)
			return KERNEL;
		return owner_of_quoted4((void *)(icmp + 1), end,
				    icmp->type == ICMP_UNREACHABLE && icmp->code == ICMP_FRAGMENTATION_NEEDED);
	default:
		return KERNEL;
	}
}

static __always_inline enum owner owner_of_ipv6(struct xdp_md *ctx, void *at, void *end)
{
	const struct ipv6hdr *ip = at;
	const struct icmp_head *icmp;
	struct prefix6 prefix = { .bits = 128 };
	struct bpf_sock_tuple tuple = {};
	struct address dest;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return KERNEL;
	__builtin_memcpy(prefix.bytes, &ip->daddr, sizeof(prefix.bytes));
	if (bpf_map_lookup_elem(&prefixes6, &prefix))
		return CONNECTION;
	__builtin_memcpy(&dest, &ip->daddr, sizeof(dest));
	at = (void *)(ip + 1);
	if (ip->nexthdr == IPPROTO_FRAGMENT) {
		const struct fragment_head *fragment = at;
		struct fragmented packet = { .dest = dest };

		/* One that is whole all the same (RFC 6946) is the kernel's. */
		if ((void *)(fragment + 1) > end || !(fragment->offset & bpf_htons(IPV6_MORE_FRAGMENTS | IPV6_FRAGMENT_OFFSET)))
			return KERNEL;
		__builtin_memcpy(&packet.source, &ip->saddr, sizeof(packet.source));
		packet.id = fragment->id;
		packet.protocol = fragment->next;
		return owner_of_fragment(&packet, !(fragment->offset & bpf_htons(IPV6_FRAGMENT_OFFSET)), (void *)(fragment + 1), end);
	}
	/* Nobody sends tunnel packets with extension headers; such packets are the kernel's. */
	switch (ip->nexthdr) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		__builtin_memcpy(tuple.ipv6.saddr, &ip->saddr, sizeof(tuple.ipv6.saddr));
		__builtin_memcpy(tuple.ipv6.daddr, &ip->daddr, sizeof(tuple.ipv6.daddr));
		return owner_of_ports(ctx, &tuple, true, &dest, ip->nexthdr, at, end);
	case IPPROTO_ICMPV6:
		icmp = at;
		if ((void *)(icmp + 1) > end)
			return KERNEL;
		if (icmp->type == ICMPV6_ECHO_REPLY)
			return is_snat_port(&dest, icmp->id) ? CONNECTION : KERNEL;
		if (icmp->type < ICMPV6_UNREACHABLE || icmp->type > ICMPV6_PARAMETER_PROBLEM)
			return KERNEL;
		return owner_of_quoted6((void *)(icmp + 1), end, icmp->type == ICMPV6_PACKET_TOO_BIG);
	default:
		return KERNEL;
	}
}

static __always_inline enum owner owner_of(struct xdp_md *ctx, void *at, void *end)
{
	const struct ethhdr *eth = at;
	__be16 protocol;

	if ((void *)(eth + 1) > end)
		return KERNEL;
	protocol = eth->h_proto;
	at = (void *)(eth + 1);
	if (protocol == bpf_htons(ETH_P_8021Q) || protocol == bpf_htons(ETH_P_8021AD)) {
		const struct vlan_tag *tag = at;

		if (vlan == 0 || (void *)(tag + 1) > end || (bpf_ntohs(tag->control) & VLAN_ID) != vlan)
			return KERNEL;
		protocol = tag->protocol;
		at = (void *)(tag + 1);
	}
	if (protocol == bpf_htons(ETH_P_IP))
		return owner_of_ipv4(ctx, at, end);
	if (protocol == bpf_htons(ETH_P_IPV6))
		return owner_of_ipv6(ctx, at, end);
	return KERNEL;
}

static __always_inline int take_from_pod(struct xdp_md *ctx)
{
	__u32 interface = ctx->ingress_ifindex, queue = ctx->rx_queue_index;
	const struct place *place = bpf_map_lookup_elem(&pods, &interface);

	if (!place || queue >= place->queues)
		return XDP_DROP;
	return bpf_redirect_map(&penstock_xsks, place->first + queue, XDP_DROP);
}

/* ".frags": packets of several buffers come too; their headers are in the first. */
SEC("xdp.frags")
int penstock_steer(struct xdp_md *ctx)
{
	enum owner owner;

	if (role == POD)
		return take_from_pod(ctx);
	owner = owner_of(ctx, (void *)(long)ctx->data, (void *)(long)ctx->data_end);
	if (owner == KERNEL)
		return XDP_PASS;
	return bpf_redirect_map(&penstock_xsks, ctx->rx_queue_index, owner);
}

char LICENSE[] SEC("license") = "Apache-2.0";
