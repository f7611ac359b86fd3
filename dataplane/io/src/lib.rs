//! Packet memory, bursts, ports and XDP steering.
