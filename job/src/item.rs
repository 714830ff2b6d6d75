//! A room message as it goes to connectors: a `cluster.Item` encoded once, shared by all of them.
//!
//! Every frame that carries items repeats them as length-delimited fields, so what is kept is the field's length and
//! body; a frame only adds its tag byte.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{WireType, decode_varint, encode_key, encode_varint, encoded_len_varint, message};
use proto::client::GapReasons;
use proto::cluster::Item;

/// Numbers of the fields in the schema that tell a gap: `Item.missed` and `Item.reasons`.
const MISSED_FIELD: u32 = 7;
const REASONS_FIELD: u32 = 8;

/// Length and body of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EncodedItem(Bytes);

impl EncodedItem {
    pub(crate) fn new(item: &Item) -> Self {
        Self(item.encode_length_delimited_to_vec().into())
    }

    /// The same item after messages that are not delivered, as many as `reasons` says; it must not say any itself.
    pub(crate) fn after(&self, missed: u64, reasons: &GapReasons) -> Self {
        let mut body = self.0.clone();
        let length = decode_varint(&mut body).expect("written by `new`");
        // Fields may stand in any order (protobuf's encoding guide), so one more is appended.
        let added = 1 + encoded_len_varint(missed) + message::encoded_len(REASONS_FIELD, reasons);
        let mut bytes = BytesMut::with_capacity(self.0.len() + added + 1);
        encode_varint(length + added as u64, &mut bytes);
        bytes.put_slice(&body);
        encode_key(MISSED_FIELD, WireType::Varint, &mut bytes);
        encode_varint(missed, &mut bytes);
        message::encode(REASONS_FIELD, reasons, &mut bytes);
        Self(bytes.freeze())
    }

    /// With its length, bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_can_be_put_before_an_encoded_item() {
        for size in [0, 1, 110, 127, 128, 16_370, 70_000] {
            let item =
                Item { channel: "room:1".into(), offset: 7, message: vec![b'x'; size].into(), ..Item::default() };
            for missed in [1, 127, 128, u64::MAX] {
                let reasons = GapReasons { capped: missed - 1, aged: 1, ..GapReasons::default() };
                let after = EncodedItem::new(&item).after(missed, &reasons);
                let read = Item::decode_length_delimited(after.bytes()).unwrap();
                assert_eq!(read, Item { missed, reasons: Some(reasons), ..item.clone() });
            }
        }
    }
}
