//! Tests with real programs on real interfaces: nodes and pods are network namespaces, the daemons are the built ones.

#![allow(unreachable_pub)]

mod accelerated;
mod api_server;
mod attach;
mod attach_agent;
mod attach_asked;
mod attach_chains;
mod attach_many;
mod beyond;
mod changes;
mod chart;
mod churn;
mod configurations;
mod containers;
mod dissect;
mod egress;
mod endpoints;
mod frames;
mod guarded;
mod insight;
mod kernel_vxlan;
mod lab;
mod lifecycle;
mod limits;
mod machine;
mod malformed;
mod manifests;
mod mtu;
mod operations;
mod overlay;
mod ovs_geneve;
mod ports;
mod restart;
mod runtimes;
mod served;
mod services;
mod stateful;
mod testpmd;
mod traffic;
mod truth;
mod vhost;
