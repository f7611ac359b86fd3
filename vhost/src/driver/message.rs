//! Bodies of the messages that a front-end sends.

/// A `u64`.
#[must_use]
pub fn number(value: u64) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

/// A ring's index and a number: size, base or state.
#[must_use]
pub fn ring_state(index: u32, value: u32) -> Vec<u8> {
    [index.to_ne_bytes(), value.to_ne_bytes()].concat()
}

/// A ring's place in the front-end's own addresses.
#[must_use]
pub fn ring_addresses(index: u32, at: super::RingAddresses) -> Vec<u8> {
    let flags = 0u32;
    let mut body = [index.to_ne_bytes(), flags.to_ne_bytes()].concat();
    for word in [at.descriptors, at.used, at.available, 0] {
        body.extend(word.to_ne_bytes());
    }
    body
}

/// One region of the memory table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionRow {
    /// Guest physical address.
    pub guest: u64,
    /// Length in bytes.
    pub len: u64,
    /// Address in the front-end.
    pub user: u64,
    /// Where in the file it begins.
    pub offset: u64,
}

impl RegionRow {
    fn words(&self) -> impl Iterator<Item = u8> {
        [self.guest, self.len, self.user, self.offset].into_iter().flat_map(u64::to_ne_bytes)
    }
}

/// The whole memory table.
#[must_use]
pub fn memory_table(rows: &[RegionRow]) -> Vec<u8> {
    let count = rows.len() as u64;
    count.to_ne_bytes().into_iter().chain(rows.iter().flat_map(RegionRow::words)).collect()
}

/// One region, to be added or removed.
#[must_use]
pub fn memory_region(row: RegionRow) -> Vec<u8> {
    [0; 8].into_iter().chain(row.words()).collect()
}

/// The record of descriptors in flight: its size and place in the file, and the queues that it is for.
#[must_use]
pub fn inflight(size: u64, offset: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    let mut body = [size.to_ne_bytes(), offset.to_ne_bytes()].concat();
    body.extend(queues.to_ne_bytes());
    body.extend(queue_size.to_ne_bytes());
    // The structure is padded to its alignment.
    body.extend([0; 4]);
    body
}

/// The first eight bytes of a reply.
#[must_use]
pub fn first_number(body: &[u8]) -> Option<u64> {
    body.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}
