//! FrameCodec of a delivery stream, and their codec: `cluster.FromOwner`, but with items that were encoded before, once for
//! all connectors. The generated stub would encode each anew for each connector.

use bytes::BufMut;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, key_len};
use proto::cluster;
use proto::cluster::from_owner::Frame as Body;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::item::EncodedItem;

/// Numbers of the fields in the schema.
mod field {
    pub(super) const FROM_OWNER_DELIVER: u32 = 3;
    pub(super) const FROM_OWNER_HELD: u32 = 4;
    pub(super) const DELIVER_ITEMS: u32 = 4;
    pub(super) const HELD_RECENT: u32 = 9;
}

/// One frame to a connector.
#[derive(Debug)]
pub(crate) enum Frame {
    Whole(Body),
    Deliver {
        topic: cluster::Topic,
        partition: u32,
        epoch: u64,
        seq: u64,
        items: Vec<EncodedItem>,
        through: u64,
        queued_us: u64,
    },
    Held(cluster::Held, Vec<EncodedItem>),
}

impl Frame {
    pub(crate) fn encode(self, into: &mut impl BufMut) {
        match self {
            Self::Whole(body) => {
                let frame = cluster::FromOwner { frame: Some(body) };
                frame.encode_raw(into);
            }
            Self::Deliver { topic, partition, epoch, seq, items, through, queued_us } => {
                let topic = topic.into();
                let head = cluster::Deliver { topic, partition, epoch, seq, items: Vec::new(), through, queued_us };
                nest(field::FROM_OWNER_DELIVER, &head, field::DELIVER_ITEMS, &items, into);
            }
            Self::Held(head, recent) => nest(field::FROM_OWNER_HELD, &head, field::HELD_RECENT, &recent, into),
        }
    }
}

/// The field `outer`, holding `head` and the repeated field `inner`. (Fields may stand in any order.)
fn nest(outer: u32, head: &impl prost::Message, inner: u32, items: &[EncodedItem], into: &mut impl BufMut) {
    let length = head.encoded_len() + items.iter().map(|item| key_len(inner) + item.len()).sum::<usize>();
    encode_key(outer, WireType::LengthDelimited, into);
    encode_varint(length as u64, into);
    head.encode_raw(into);
    for item in items {
        encode_key(inner, WireType::LengthDelimited, into);
        into.put_slice(item.bytes());
    }
}

/// Encodes frames to a connector, decodes its own.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FrameCodec;

impl Codec for FrameCodec {
    type Encode = Frame;
    type Decode = cluster::FromHolder;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for FrameCodec {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        frame.encode(into);
        Ok(())
    }
}

impl Decoder for FrameCodec {
    type Item = cluster::FromHolder;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<cluster::FromHolder>, Status> {
        let frame = cluster::FromHolder::decode(from);
        frame.map(Some).map_err(|error| Status::internal(format!("a frame of the connector's: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(frame: Frame) -> Option<Body> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        cluster::FromOwner::decode(&bytes[..]).unwrap().frame
    }

    #[test]
    fn frames_put_together_are_what_the_generated_code_reads() {
        let items: Vec<_> = (0..300)
            .map(|i| cluster::Item {
                channel: format!("room:{i}"),
                offset: i,
                message: vec![b'm'; i as usize].into(),
                ..cluster::Item::default()
            })
            .collect();
        let encoded = || items.iter().map(EncodedItem::new).collect::<Vec<_>>();
        let topic = cluster::Topic::Rooms;
        let deliver = cluster::Deliver {
            topic: topic.into(),
            partition: 0,
            epoch: 7,
            seq: 300,
            items: items.clone(),
            through: 9,
            queued_us: 5,
        };
        let frame =
            Frame::Deliver { topic, partition: 0, epoch: 7, seq: 300, items: encoded(), through: 9, queued_us: 5 };
        assert_eq!(read(frame), Some(Body::Deliver(deliver)));

        let head = cluster::Held { partition: 5, hold: 3, channel: "room:1".into(), ..cluster::Held::default() };
        let held = cluster::Held { recent: items.clone(), ..head.clone() };
        assert_eq!(read(Frame::Held(head, encoded())), Some(Body::Held(held)));

        let topic = cluster::Topic::Unspecified;
        let none =
            Frame::Deliver { topic, partition: 0, epoch: 0, seq: 0, items: Vec::new(), through: 0, queued_us: 0 };
        assert_eq!(read(none), Some(Body::Deliver(cluster::Deliver::default())));
        let own = Body::Own(cluster::Own { partition: 1, ..cluster::Own::default() });
        assert_eq!(read(Frame::Whole(own.clone())), Some(own));
    }
}
