//! CONNECT, and what closes a connection.

use super::*;
use crate::mqtt::endpoint::users::Users;

#[tokio::test]
async fn connects_are_answered_as_the_specification_says() {
    let fixture = start(|_| {}, false).await;
    for (what, connect, code) in [
        ("no name, lasting", lasting(""), ConnectReturnCode::BadClientId),
        ("control characters", hello("a\tb"), ConnectReturnCode::BadClientId),
        ("a long name", hello(&"x".repeat(300)), ConnectReturnCode::BadClientId),
        ("no name, clean", hello(""), ConnectReturnCode::Success),
        ("a tool with a will for a device", willing("tool", "devices/B/state"), ConnectReturnCode::Success),
        ("a tool with a foreign will", willing("tool", "elsewhere"), ConnectReturnCode::NotAuthorized),
        ("a device's own will", willing("A", "devices/A/state"), ConnectReturnCode::Success),
        ("another's will", willing("A", "devices/B/state"), ConnectReturnCode::NotAuthorized),
        ("a will on the order topic", willing("A", "devices/A/execute"), ConnectReturnCode::NotAuthorized),
    ] {
        let (_client, ack) = Client::connect(&fixture, connect).await;
        assert_eq!(ack, Some(ConnAck::new(code, false)), "{what}");
    }
    for level in [3, 5] {
        let mut client = Client::dial(&fixture).await;
        client.raw(&[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', level, 2, 0, 60, 0, 1, b'a']).await;
        let expected = ConnAck::new(ConnectReturnCode::RefusedProtocolVersion, false);
        assert_eq!(client.hear().await, Some(Packet::ConnAck(expected)));
        assert_eq!(client.hear().await, None);
    }
}

#[tokio::test]
async fn what_breaks_the_protocol_closes_the_connection() {
    let qos2 = wire::publish("devices/A/telemetry", b"{}", Some(1), false);
    let mut qos2 = qos2.to_vec();
    qos2[0] = 0x34;
    let mut second = BytesMut::new();
    Packet::Connect(hello("A")).write(&mut second, 1_000).unwrap();
    for (what, bytes, reason) in [
        ("QoS 2", &qos2[..], "unsupported"),
        ("PUBREL", &[0x62, 2, 0, 1], "unsupported"),
        ("a second CONNECT", &second[..], "malformed"),
        ("a CONNACK", &[0x20, 2, 0, 0], "malformed"),
        ("QoS 3", &[0x36, 5, 0, 1, b'a', 0, 1], "malformed"),
        ("a huge packet", &[0x30, 0xff, 0xff, 0x7f], "packet_too_large"),
    ] {
        let fixture = start(|_| {}, false).await;
        let mut device = Client::named(&fixture, "A").await;
        device.raw(bytes).await;
        assert_eq!(device.hear().await, None, "{what}");
        until(what, || fixture.handle.stats().refused.contains_key(reason)).await;
        assert!(fixture.desk.topics().is_empty());
    }
    let fixture = start(|_| {}, false).await;
    let mut early = Client::dial(&fixture).await;
    early.publish("devices/A/telemetry", 1, "{}").await;
    assert_eq!(early.hear().await, None);
    assert_eq!(fixture.handle.stats().refused["no_connect"], 1);
}

#[tokio::test]
async fn beyond_the_limit_of_clients_the_answer_is_server_unavailable() {
    let fixture = start(|config| config.clients_max = 1, false).await;
    let _first = Client::named(&fixture, "one").await;
    let (_second, ack) = Client::connect(&fixture, hello("two")).await;
    assert_eq!(ack.unwrap().code, ConnectReturnCode::ServiceUnavailable);
}

#[tokio::test]
async fn a_password_decides_who_a_client_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users");
    let secret = "$7$101$6NjKSEb5ZYkqS0xS$\
        YlnidZRKxdsAFNTHW26CkjtjWmo0ownFxcZW6VJwh6wZ46rNIXVJS1NbJNV7jdwzW+6EEwMXYhok1fMeXt9bkA==";
    let lines = ["A", "technician", "stranger"].map(|user| format!("{user}:{secret}\n"));
    std::fs::write(&file, lines.concat()).unwrap();
    let change = |config: &mut EndpointConfig| {
        config.password_file = Some(file);
        config.watchers = vec!["technician".to_owned()];
    };
    let fixture = start(change, false).await;
    let login = |name: &str, user: &str, password: &str| {
        let mut connect = hello(name);
        connect.set_login(user, password);
        connect
    };
    for (connect, code) in [
        (hello("A"), ConnectReturnCode::NotAuthorized),
        (login("x", "A", "wrong"), ConnectReturnCode::BadUserNamePassword),
        (login("x", "nobody", "secret"), ConnectReturnCode::BadUserNamePassword),
        (login("x", "stranger", "secret"), ConnectReturnCode::NotAuthorized),
        (login("x", "A", "secret"), ConnectReturnCode::Success),
        (login("x", "technician", "secret"), ConnectReturnCode::Success),
    ] {
        let (_client, ack) = Client::connect(&fixture, connect.clone()).await;
        assert_eq!(ack.unwrap().code, code, "{connect:?}");
    }
    // The same client id under two names: nobody is thrown out.
    let (mut device, _) = Client::connect(&fixture, login("same", "A", "secret")).await;
    let (mut watcher, _) = Client::connect(&fixture, login("same", "technician", "secret")).await;
    assert_eq!(watcher.subscribe("#", QoS::AtLeastOnce).await, SubscribeReasonCode::Success(QoS::AtMostOnce));
    device.publish("devices/A/telemetry", 1, "{}").await;
    assert_eq!(device.hear().await, Some(Packet::PubAck(PubAck::new(1))));
    let Some(Packet::Publish(seen)) = watcher.hear().await else { panic!("nothing forwarded") };
    assert_eq!((seen.topic.as_str(), seen.qos), ("devices/A/telemetry", QoS::AtMostOnce));
    watcher.publish("devices/A/telemetry", 1, "{}").await;
    assert_eq!(watcher.hear().await, None);
}

#[tokio::test]
async fn a_busy_port_and_an_open_address_are_one_clear_sentence_each() {
    let fixture = start(|_| {}, false).await;
    let bind = async |listen: SocketAddr| {
        let desk: Arc<dyn Intake> = Arc::new(Desk::default());
        let sessions = Arc::new(MemorySessions::default());
        Endpoint::bind(EndpointConfig::new(listen), desk, TopicScheme::default(), HashSet::new(), sessions).await
    };
    let busy = bind(fixture.address).await.err().unwrap().to_string();
    let expected = format!(
        "cannot listen on {}: the port is in use; is another MQTT broker or floorgate running?",
        fixture.address
    );
    assert_eq!(busy, expected);
    let open = bind((Ipv4Addr::UNSPECIFIED, 0).into()).await.err().unwrap();
    assert!(matches!(open, BindError::Open(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_bring_the_endpoint_down(
        bytes in proptest::collection::vec(any::<u8>(), 1..300),
        connected in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fixture = start(|_| {}, false).await;
            let mut client = if connected { Client::named(&fixture, "A").await } else { Client::dial(&fixture).await };
            client.raw(&bytes).await;
            let _ = client.stream.shutdown().await;
            while client.stream.read_buf(&mut client.buffer).await.unwrap_or(0) > 0 {}
            let mut other = Client::named(&fixture, "B").await;
            other.ping().await;
            assert!(!fixture.ended.is_finished());
        });
    }
}

#[tokio::test]
async fn users_and_devices_that_are_read_again_count_for_the_next_client() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users");
    let secret = "$7$101$6NjKSEb5ZYkqS0xS$\
        YlnidZRKxdsAFNTHW26CkjtjWmo0ownFxcZW6VJwh6wZ46rNIXVJS1NbJNV7jdwzW+6EEwMXYhok1fMeXt9bkA==";
    std::fs::write(&file, format!("A:{secret}\n")).unwrap();
    let fixture = start(|config| config.password_file = Some(file.clone()), false).await;
    let login = |user: &str| {
        let mut connect = hello("x");
        connect.set_login(user, "secret");
        connect
    };
    let (_, ack) = Client::connect(&fixture, login("C")).await;
    assert_eq!(ack.unwrap().code, ConnectReturnCode::BadUserNamePassword);
    fixture.handle.attach([id("A"), id("C")].into());
    fixture.handle.set_users(Users::parse(&format!("C:{secret}\n"), "users").unwrap());
    let (_, ack) = Client::connect(&fixture, login("C")).await;
    assert_eq!(ack.unwrap().code, ConnectReturnCode::Success);
    let (_, ack) = Client::connect(&fixture, login("A")).await;
    assert_eq!(ack.unwrap().code, ConnectReturnCode::BadUserNamePassword);
}

#[tokio::test]
async fn a_local_tool_with_the_id_of_a_new_device_has_to_come_again_and_is_the_device() {
    let fixture = start(|_| {}, false).await;
    let mut tool = Client::named(&fixture, "C").await;
    let mut other = Client::named(&fixture, "tool").await;
    fixture.handle.attach([id("A"), id("B"), id("C")].into());
    assert_eq!(tool.hear().await, None);
    let mut device = Client::named(&fixture, "C").await;
    let execute = device.subscribe("devices/C/execute", QoS::AtLeastOnce).await;
    assert_eq!(execute, SubscribeReasonCode::Success(QoS::AtLeastOnce), "its own orders");
    other.publish("devices/A/telemetry", 1, "{}").await;
    assert_eq!(other.hear().await, Some(Packet::PubAck(PubAck::new(1))), "nobody else is concerned");
}
