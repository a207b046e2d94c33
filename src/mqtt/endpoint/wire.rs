//! The codec, with the checks it leaves out.
//!
//! rumqttc's codec frames and reads packets safely (every length is checked against the bytes that are there), but it
//! is a client's codec. Before it sees a packet this file checks what a server must: reserved flags [MQTT-2.2.2-2],
//! packet ids that must not be zero [MQTT-2.3.1-1], the reserved bit and flag rules of CONNECT [MQTT-3.1.2-3, -22],
//! protocol names and levels (a level 5 CONNECT has another layout), NUL in text [MQTT-1.5.3-2], reserved bits of
//! SUBSCRIBE [MQTT-3-8.3-4], an UNSUBSCRIBE without a filter [MQTT-3.10.3-2], lengths of packets without content.

use bytes::{BufMut, Bytes, BytesMut};
use rumqttc::mqttbytes::v4::{ConnAck, ConnectReturnCode, Packet, PubAck, SubAck, SubscribeReasonCode, UnsubAck};
use rumqttc::mqttbytes::{Error, QoS};

use super::filter;

/// What is wrong with the bytes that came in. Nothing after it on the connection can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    /// Longer than the limit.
    #[error("a packet of {0} bytes")]
    TooLarge(usize),
    /// A CONNECT of another version than 3.1.1 (level 4); answered with CONNACK 0x01.
    #[error("protocol level {0}, only 4 (MQTT 3.1.1) is spoken here")]
    Level(u8),
    /// Against the specification.
    #[error("{0}")]
    Malformed(&'static str),
    /// The codec could not read it.
    #[error("{0}")]
    Codec(String),
}

/// Takes one whole packet from the front of `bytes`; `None` until it is complete.
pub(super) fn decode(bytes: &mut BytesMut, max: usize) -> Result<Option<Packet>, WireError> {
    let Some((header, length)) = frame(bytes)? else { return Ok(None) };
    if header + length > max {
        return Err(WireError::TooLarge(header + length));
    }
    let Some(body) = bytes.get(header..header + length) else {
        bytes.reserve(header + length - bytes.len());
        return Ok(None);
    };
    check(bytes[0], body)?;
    let packet = Packet::read(bytes, max).map_err(|error| match error {
        Error::InvalidProtocolLevel(level) => WireError::Level(level),
        other => WireError::Codec(other.to_string()),
    })?;
    check_text(&packet)?;
    Ok(Some(packet))
}

/// Length of the fixed header and of what follows it; `None` while the length itself is incomplete.
fn frame(bytes: &[u8]) -> Result<Option<(usize, usize)>, WireError> {
    let mut length = 0_usize;
    for index in 1..=4 {
        let Some(byte) = bytes.get(index) else { return Ok(None) };
        length |= usize::from(byte & 0x7f) << (7 * (index - 1));
        if byte & 0x80 == 0 {
            return Ok(Some((index + 1, length)));
        }
    }
    Err(WireError::Malformed("remaining length of more than four bytes"))
}

/// The rules about bits and ids.
fn check(first: u8, body: &[u8]) -> Result<(), WireError> {
    let (kind, flags) = (first >> 4, first & 0x0f);
    let expected_flags = match kind {
        3 => flags,
        6 | 8 | 10 => 2,
        _ => 0,
    };
    if flags != expected_flags {
        return Err(WireError::Malformed("reserved flags of the fixed header"));
    }
    match kind {
        1 => check_connect(body),
        3 if flags & 0b110 == 0 && flags & 0b1000 != 0 => Err(WireError::Malformed("DUP with QoS 0")),
        4 if body.len() != 2 => Err(WireError::Malformed("PUBACK of a wrong length")),
        8 | 10 if body.len() < 5 => Err(WireError::Malformed("no topic filter")),
        8 | 10 if body.starts_with(&[0, 0]) => Err(WireError::Malformed("packet id 0")),
        8 => check_subscribe(body),
        12 | 14 if !body.is_empty() => Err(WireError::Malformed("a body where none belongs")),
        _ => Ok(()),
    }
}

fn check_connect(body: &[u8]) -> Result<(), WireError> {
    let named = |name: &[u8]| body.strip_prefix(name).and_then(<[u8]>::split_first);
    // MQTT 3.1 called itself MQIsdp; its clients understand the answer for a wrong level.
    if let Some((level, _)) = named(b"\x00\x06MQIsdp") {
        return Err(WireError::Level(*level));
    }
    let (level, rest) = named(b"\x00\x04MQTT").ok_or(WireError::Malformed("not MQTT"))?;
    if *level != 4 {
        return Err(WireError::Level(*level));
    }
    let flags = *rest.first().ok_or(WireError::Malformed("CONNECT without flags"))?;
    if flags & 0x01 != 0 {
        return Err(WireError::Malformed("reserved flag of CONNECT"));
    }
    if flags & 0xc0 == 0x40 {
        return Err(WireError::Malformed("a password without a user name"));
    }
    Ok(())
}

/// Reserved bits of the requested QoS; the codec masks them away.
fn check_subscribe(body: &[u8]) -> Result<(), WireError> {
    let mut rest = body.get(2..).unwrap_or_default();
    while let [high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let options = after.get(length).ok_or(WireError::Malformed("a topic filter that is cut off"))?;
        if *options > 2 {
            return Err(WireError::Malformed("reserved bits of a requested QoS"));
        }
        rest = after.get(length + 1..).unwrap_or_default();
    }
    Ok(())
}

/// The rules about text that only show after reading.
fn check_text(packet: &Packet) -> Result<(), WireError> {
    match packet {
        Packet::Connect(connect) => {
            let will = connect.last_will.as_ref();
            let login = connect.login.as_ref();
            if will.is_some_and(|will| !filter::is_topic(&will.topic)) {
                return Err(WireError::Malformed("a last will for no topic"));
            }
            if connect.client_id.contains('\0') || login.is_some_and(|login| login.username.contains('\0')) {
                return Err(WireError::Malformed("NUL in a text"));
            }
        }
        Packet::Publish(publish) if !filter::is_topic(&publish.topic) => {
            return Err(WireError::Malformed("a PUBLISH to no topic"));
        }
        Packet::Subscribe(subscribe) if subscribe.filters.iter().any(|f| !filter::is_filter(&f.path)) => {
            return Err(WireError::Malformed("no valid topic filter"));
        }
        Packet::Unsubscribe(unsubscribe) if unsubscribe.topics.iter().any(|topic| !filter::is_filter(topic)) => {
            return Err(WireError::Malformed("no valid topic filter"));
        }
        _ => {}
    }
    Ok(())
}

/// Appends a PUBACK.
pub(super) fn puback(out: &mut BytesMut, pkid: u16) {
    // Writing into memory fails for a packet id of zero or a huge packet alone; neither can be here.
    let _ = PubAck::new(pkid).write(out);
}

/// Appends a CONNACK.
pub(super) fn connack(out: &mut BytesMut, code: ConnectReturnCode, session_present: bool) {
    let _ = ConnAck::new(code, session_present).write(out);
}

/// Appends a SUBACK.
pub(super) fn suback(out: &mut BytesMut, pkid: u16, codes: Vec<SubscribeReasonCode>) {
    let _ = SubAck::new(pkid, codes).write(out);
}

/// Appends an UNSUBACK.
pub(super) fn unsuback(out: &mut BytesMut, pkid: u16) {
    let _ = UnsubAck { pkid }.write(out);
}

/// Appends a PINGRESP.
pub(super) fn pingresp(out: &mut BytesMut) {
    out.put_slice(&[0xd0, 0]);
}

/// A whole PUBLISH. `pkid` is `None` for QoS 0.
pub(super) fn publish(topic: &str, payload: &[u8], pkid: Option<u16>, retain: bool) -> Bytes {
    let qos = if pkid.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce };
    let mut packet = rumqttc::mqttbytes::v4::Publish::from_bytes(topic, qos, Bytes::copy_from_slice(payload));
    packet.pkid = pkid.unwrap_or_default();
    packet.retain = retain;
    let mut out = BytesMut::with_capacity(packet.size());
    let _ = packet.write(&mut out);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1_000;

    fn read(bytes: &[u8]) -> Result<Option<Packet>, WireError> {
        decode(&mut BytesMut::from(bytes), MAX)
    }

    #[test]
    fn a_packet_is_taken_whole_or_not_at_all() {
        let whole = publish("a/b", b"payload", Some(7), false);
        for cut in 0..whole.len() {
            let mut bytes = BytesMut::from(&whole[..cut]);
            assert_eq!(decode(&mut bytes, MAX), Ok(None), "{cut}");
            assert_eq!(bytes.len(), cut);
        }
        let Ok(Some(Packet::Publish(read))) = read(&whole) else { panic!("no PUBLISH") };
        assert_eq!((read.topic.as_str(), read.pkid, &read.payload[..]), ("a/b", 7, &b"payload"[..]));
    }

    #[test]
    fn what_the_codec_lets_pass_is_refused_here() {
        for (what, bytes) in [
            ("reserved flags of PINGREQ", &[0xc1_u8, 0][..]),
            ("a PINGREQ with a body", &[0xc0, 1, 0]),
            ("a DISCONNECT with a body", &[0xe0, 1, 0]),
            ("SUBSCRIBE without its flag", &[0x80, 6, 0, 1, 0, 1, b'a', 0]),
            ("SUBSCRIBE with packet id 0", &[0x82, 6, 0, 0, 0, 1, b'a', 0]),
            ("SUBSCRIBE with reserved QoS bits", &[0x82, 6, 0, 1, 0, 1, b'a', 4]),
            ("SUBSCRIBE with QoS 3", &[0x82, 6, 0, 1, 0, 1, b'a', 3]),
            ("UNSUBSCRIBE without a filter", &[0xa2, 2, 0, 1]),
            ("UNSUBSCRIBE with packet id 0", &[0xa2, 5, 0, 0, 0, 1, b'a']),
            ("PUBLISH with QoS 3", &[0x36, 5, 0, 1, b'a', 0, 1]),
            ("PUBLISH with packet id 0", &[0x32, 5, 0, 1, b'a', 0, 0]),
            ("PUBLISH QoS 0 with DUP", &[0x38, 3, 0, 1, b'a']),
            ("PUBLISH to a filter", &[0x30, 3, 0, 1, b'#']),
            ("PUBLISH to NUL", &[0x30, 3, 0, 1, 0]),
            ("PUBLISH to nothing", &[0x30, 2, 0, 0]),
            ("PUBLISH to a topic that is not UTF-8", &[0x30, 3, 0, 1, 0xff]),
            ("a topic longer than its packet", &[0x30, 3, 0, 9, b'a']),
            ("five bytes of length", &[0x30, 0xff, 0xff, 0xff, 0xff, 1]),
            ("type 0", &[0x00, 0]),
            ("type 15", &[0xf0, 0]),
            ("a long PUBACK", &[0x40, 3, 0, 1, 0]),
            ("CONNECT with the reserved bit", &[0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 4, 3, 0, 0, 0, 0]),
            ("CONNECT with a password alone", &[0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 4, 0x42, 0, 0, 0, 0, 0, 0]),
            ("CONNECT of something else", &[0x10, 12, 0, 4, b'H', b'T', b'T', b'P', 4, 2, 0, 0, 0, 0]),
            ("a CONNECT that is cut off", &[0x10, 2, 0, 4]),
        ] {
            assert!(read(bytes).is_err(), "{what}");
        }
        assert_eq!(read(&[0xc0, 0]), Ok(Some(Packet::PingReq)));
    }

    #[test]
    fn other_versions_of_mqtt_are_told_apart_from_garbage() {
        let v5 = [0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 0, 0, 0];
        assert_eq!(read(&v5), Err(WireError::Level(5)));
        let v31 = [0x10, 14, 0, 6, b'M', b'Q', b'I', b's', b'd', b'p', 3, 2, 0, 60, 0, 0];
        assert_eq!(read(&v31), Err(WireError::Level(3)));
    }

    #[test]
    fn a_packet_over_the_limit_is_refused_by_its_header() {
        assert_eq!(read(&[0x30, 0xff, 0xff, 0x03]), Err(WireError::TooLarge(65_539)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_u8..16, flags in 0_u8..16) {
            let _ = read(&bytes);
            let mut framed = vec![kind << 4 | flags, u8::try_from(bytes.len() & 0x7f).unwrap()];
            framed.extend_from_slice(&bytes[..bytes.len() & 0x7f]);
            let _ = read(&framed);
        }
    }
}
