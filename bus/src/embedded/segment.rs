//! The bytes of a segment: how they are written, and how what a crash left is judged. Knows no file.
//!
//! A *slot* is a (topic, partition) of the log. All numbers are little-endian.
//!
//! ```text
//! header  "barrseg1" number:u64 salt:u32 slots:u32 created_ms:i64 log_id:[u8;32] (first offset:u64) × slots crc:u32
//! batch   magic:u32 body_bytes:u32 position:u64 crc:u32   then its records; one batch is one write and one sync
//! record  value_bytes:u32 crc:u32 slot:u16 0:u16 offset:u64 time_ms:i64 value
//! ```
//!
//! The next batch is written only after the last one was synced. So a batch head that is in its place proves that
//! everything before it was durable: what is unreadable before it is *damage*. With no such head behind it, it is a
//! *torn tail*: a batch that was never acknowledged. A clean end writes an empty batch for that reason.
//! The CRC of a batch head begins with the segment's random salt, so that no payload can pass for one.

use crate::{Offset, RECORD_BYTES_MAX};

/// A segment's first bytes; the last is the format's version.
const MAGIC: [u8; 8] = *b"barrseg1";
/// A batch's first bytes.
const BATCH_MAGIC: u32 = 0xb1a7_c4ed;
/// Bytes of a log ID's field.
const ID_BYTES: usize = 32;
/// Bytes of a header before its offsets.
const HEADER_FIXED_BYTES: usize = 8 + 8 + 4 + 4 + 8 + ID_BYTES;
/// Bytes of a batch's head.
pub(super) const BATCH_HEAD_BYTES: usize = 20;
/// Bytes of a record before its value.
pub(super) const RECORD_HEAD_BYTES: usize = 28;
/// Most slots that a header may claim: two topics of [`crate::config::PARTITIONS_MAX`].
const SLOTS_MAX: u32 = 2 * crate::config::PARTITIONS_MAX;

/// A segment's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// From 1, dense.
    pub(super) number: u64,
    /// Random; the seed of the batch heads' CRC.
    pub(super) salt: u32,
    /// Milliseconds since 1970.
    pub(super) created_ms: i64,
    /// The log's ID.
    pub(super) log: String,
    /// The offset that each slot's first record in this segment has, or would have.
    pub(super) first: Vec<Offset>,
}

impl Header {
    /// Its length, bytes, with `slots`.
    pub(super) fn bytes(slots: usize) -> usize {
        HEADER_FIXED_BYTES + 8 * slots + 4
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::bytes(self.first.len()));
        out.extend(MAGIC);
        out.extend(self.number.to_le_bytes());
        out.extend(self.salt.to_le_bytes());
        out.extend((self.first.len() as u32).to_le_bytes());
        out.extend(self.created_ms.to_le_bytes());
        let mut id = [0; ID_BYTES];
        id[..self.log.len()].copy_from_slice(self.log.as_bytes());
        out.extend(id);
        for first in &self.first {
            out.extend(first.to_le_bytes());
        }
        out.extend(crc32c::crc32c(&out).to_le_bytes());
        out
    }

    /// `None` where the bytes do not begin with a whole, undamaged header.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        if take::<8>(&mut rest)? != MAGIC {
            return None;
        }
        let number = u64::from_le_bytes(take(&mut rest)?);
        let salt = u32::from_le_bytes(take(&mut rest)?);
        let slots = u32::from_le_bytes(take(&mut rest)?);
        let created_ms = i64::from_le_bytes(take(&mut rest)?);
        let id = take::<ID_BYTES>(&mut rest)?;
        if slots > SLOTS_MAX {
            return None;
        }
        let mut first = Vec::with_capacity(slots as usize);
        for _ in 0..slots {
            first.push(u64::from_le_bytes(take(&mut rest)?));
        }
        let crc = crc32c::crc32c(&bytes[..bytes.len() - rest.len()]);
        if u32::from_le_bytes(take(&mut rest)?) != crc {
            return None;
        }
        let id_len = id.iter().position(|&b| b == 0).unwrap_or(ID_BYTES);
        let log = String::from_utf8(id[..id_len].to_vec()).ok()?;
        Some(Self { number, salt, created_ms, log, first })
    }
}

/// A batch as it is being written.
pub(super) struct Batch {
    bytes: Vec<u8>,
    position: u64,
}

impl Batch {
    /// A batch that will stand at `position`; `buffer` is used again.
    pub(super) fn new(mut buffer: Vec<u8>, position: u64) -> Self {
        buffer.clear();
        buffer.resize(BATCH_HEAD_BYTES, 0);
        Self { bytes: buffer, position }
    }

    /// Adds a record; returns its position in the segment.
    pub(super) fn push(&mut self, slot: u16, offset: Offset, time_ms: i64, value: &[u8]) -> u32 {
        let at = self.bytes.len();
        self.bytes.extend((value.len() as u32).to_le_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(slot.to_le_bytes());
        self.bytes.extend([0; 2]);
        self.bytes.extend(offset.to_le_bytes());
        self.bytes.extend(time_ms.to_le_bytes());
        self.bytes.extend(value);
        let crc = record_crc(&self.bytes[at..]);
        self.bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        (self.position + at as u64) as u32
    }

    /// The bytes to write.
    pub(super) fn finish(mut self, salt: u32) -> Vec<u8> {
        let body = (self.bytes.len() - BATCH_HEAD_BYTES) as u32;
        self.bytes[..4].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
        self.bytes[4..8].copy_from_slice(&body.to_le_bytes());
        self.bytes[8..16].copy_from_slice(&self.position.to_le_bytes());
        let crc = crc32c::crc32c_append(salt, &self.bytes[..16]);
        self.bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        self.bytes
    }
}

/// A record's head, read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHead {
    pub(super) value_bytes: usize,
    pub(super) slot: u16,
    pub(super) offset: Offset,
    pub(super) time_ms: i64,
    crc: u32,
}

impl RecordHead {
    /// `None` where the length is impossible. Not checked against the CRC: see [`RecordHead::holds`].
    pub(super) fn decode(bytes: &[u8; RECORD_HEAD_BYTES]) -> Option<Self> {
        let mut rest = &bytes[..];
        let value_bytes = u32::from_le_bytes(take(&mut rest)?) as usize;
        let crc = u32::from_le_bytes(take(&mut rest)?);
        let slot = u16::from_le_bytes(take(&mut rest)?);
        take::<2>(&mut rest)?;
        let offset = u64::from_le_bytes(take(&mut rest)?);
        let time_ms = i64::from_le_bytes(take(&mut rest)?);
        (value_bytes <= RECORD_BYTES_MAX).then_some(Self { value_bytes, slot, offset, time_ms, crc })
    }

    /// Whether `record`, head and value, is what was written.
    pub(super) fn holds(&self, record: &[u8]) -> bool {
        record.len() == RECORD_HEAD_BYTES + self.value_bytes && record_crc(record) == self.crc
    }
}

/// The CRC of a record: all of it but the CRC itself.
fn record_crc(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[..4]), &record[8..])
}

/// How a segment's batches end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With the file.
    Whole,
    /// With a batch, beginning here, that was not synced.
    Torn(usize),
    /// Here are bytes that were durable and no longer are what was written.
    Damaged(usize, &'static str),
}

/// Judges the batches of a segment one by one; `visit` gets each record (its head and position) of whole batches, in order.
/// `next` is each slot's next offset and is moved on.
pub(super) fn judge(bytes: &[u8], header: &Header, next: &mut [Offset], mut visit: impl FnMut(RecordHead, u32)) -> End {
    let mut at = Header::bytes(header.first.len());
    let mut heads = Vec::new();
    while at < bytes.len() {
        heads.clear();
        let Some(end) = batch(bytes, at, header.salt, &mut heads) else {
            let durable = (at + 1..bytes.len()).any(|later| batch_head(bytes, later, header.salt).is_some());
            return if durable { End::Damaged(at, "its checksum is wrong") } else { End::Torn(at) };
        };
        for &(head, position) in &heads {
            match next.get_mut(usize::from(head.slot)) {
                Some(next) if *next == head.offset => *next += 1,
                _ => return End::Damaged(position as usize, "its offset does not follow the one before"),
            }
            visit(head, position);
        }
        at = end;
    }
    End::Whole
}

/// The body's length of the batch at `at`, if its head is one.
fn batch_head(bytes: &[u8], at: usize, salt: u32) -> Option<usize> {
    let head: &[u8; BATCH_HEAD_BYTES] = bytes.get(at..)?.first_chunk()?;
    let mut rest = &head[..];
    if u32::from_le_bytes(take(&mut rest)?) != BATCH_MAGIC {
        return None;
    }
    let body = u32::from_le_bytes(take(&mut rest)?) as usize;
    let position = u64::from_le_bytes(take(&mut rest)?);
    let crc = u32::from_le_bytes(take(&mut rest)?);
    (position == at as u64 && crc == crc32c::crc32c_append(salt, &head[..16])).then_some(body)
}

/// Where the batch at `at` ends, its records put into `heads`; `None` if any byte of it is not as it was written.
fn batch(bytes: &[u8], at: usize, salt: u32, heads: &mut Vec<(RecordHead, u32)>) -> Option<usize> {
    let body = batch_head(bytes, at, salt)?;
    let mut at = at + BATCH_HEAD_BYTES;
    let end = at.checked_add(body)?;
    let bytes = bytes.get(..end)?;
    while at < end {
        let head = RecordHead::decode(bytes.get(at..)?.first_chunk()?)?;
        let record = bytes.get(at..at + RECORD_HEAD_BYTES + head.value_bytes)?;
        if !head.holds(record) {
            return None;
        }
        heads.push((head, at as u32));
        at += record.len();
    }
    Some(end)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three batches of two records, and where each begins.
    fn segment() -> (Header, Vec<u8>, Vec<usize>) {
        let header = Header { number: 3, salt: 77, created_ms: 5, log: "abc".into(), first: vec![1, 10] };
        let mut bytes = header.encode();
        let mut starts = Vec::new();
        for n in 0..3u64 {
            starts.push(bytes.len());
            let mut batch = Batch::new(Vec::new(), bytes.len() as u64);
            batch.push(0, 1 + n, 100, b"to the first");
            batch.push(1, 10 + n, 100, b"to the second");
            bytes.extend(batch.finish(header.salt));
        }
        (header, bytes, starts)
    }

    fn judged(header: &Header, bytes: &[u8]) -> (End, usize) {
        let mut records = 0;
        let end = judge(bytes, header, &mut header.first.clone(), |_, _| records += 1);
        (end, records)
    }

    #[test]
    fn what_was_written_is_read() {
        let (header, bytes, _) = segment();
        assert_eq!(Header::decode(&bytes).as_ref(), Some(&header));
        assert_eq!(judged(&header, &bytes), (End::Whole, 6));
    }

    #[test]
    fn a_cut_anywhere_in_the_last_batch_is_a_torn_tail() {
        let (header, bytes, starts) = segment();
        for cut in starts[2] + 1..bytes.len() {
            assert_eq!(judged(&header, &bytes[..cut]), (End::Torn(starts[2]), 4), "cut at {cut}");
        }
    }

    #[test]
    fn a_wrong_bit_before_the_last_batch_is_damage_and_in_it_a_torn_tail() {
        let (header, bytes, starts) = segment();
        for at in starts[0]..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 4;
            let (end, records) = judged(&header, &bytes);
            if at < starts[2] {
                let start = starts[usize::from(at >= starts[1])];
                assert_eq!(
                    (end, records),
                    (End::Damaged(start, "its checksum is wrong"), if at >= starts[1] { 2 } else { 0 })
                );
            } else {
                assert_eq!((end, records), (End::Torn(starts[2]), 4));
            }
        }
    }

    #[test]
    fn a_header_with_a_wrong_bit_is_none() {
        let (header, bytes, starts) = segment();
        for at in 0..starts[0] {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert_eq!(Header::decode(&bytes), None, "bit at {at} of {header:?}");
        }
    }

    #[test]
    fn a_payload_that_looks_like_a_batch_does_not_hide_a_torn_tail() {
        let (header, mut bytes, _) = segment();
        let torn = bytes.len();
        // What an attacker who knows the place but not the salt can send.
        let mut value = Batch::new(Vec::new(), (torn + BATCH_HEAD_BYTES + RECORD_HEAD_BYTES) as u64).finish(0);
        value.extend([7; 100]);
        let mut batch = Batch::new(Vec::new(), torn as u64);
        batch.push(0, 4, 100, &value);
        bytes.extend(batch.finish(header.salt));
        bytes.pop();
        assert_eq!(judged(&header, &bytes), (End::Torn(torn), 6));
    }
}
