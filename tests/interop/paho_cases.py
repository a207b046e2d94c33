"""The named interoperability cases the endpoint's subset covers, with Eclipse Paho's Python client."""

import queue
import socket
import sys
import time

import paho.mqtt.client as mqtt

PORT = int(sys.argv[1])
WAIT = 5


class Client:
    def __init__(self, name, clean=True, will=None, keepalive=60):
        self.got, self.acks, self.codes = queue.Queue(), queue.Queue(), queue.Queue()
        self.connected, self.gone = queue.Queue(), queue.Queue()
        self.mqtt = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, clean_session=clean, protocol=mqtt.MQTTv311, reconnect_on_failure=False)
        self.mqtt.on_connect = lambda _c, _u, flags, reason, _p: self.connected.put((reason.value, flags.session_present))
        self.mqtt.on_disconnect = lambda *_: self.gone.put(True)
        self.mqtt.on_message = lambda _c, _u, message: self.got.put(message)
        self.mqtt.on_publish = lambda _c, _u, mid, *_: self.acks.put(mid)
        self.mqtt.on_subscribe = lambda _c, _u, _mid, codes, _p: self.codes.put([code.value for code in codes])
        self.mqtt.on_unsubscribe = lambda *_: self.codes.put("unsubscribed")
        if will:
            self.mqtt.will_set(will, "will", qos=1, retain=True)
        self.mqtt.connect("127.0.0.1", PORT, keepalive)
        self.mqtt.loop_start()
        self.code, self.present = self.connected.get(timeout=WAIT)

    def publish(self, topic, payload, qos=1, retain=False):
        mid = self.mqtt.publish(topic, payload, qos=qos, retain=retain).mid
        assert self.acks.get(timeout=WAIT) == mid

    def subscribe(self, *filters):
        self.mqtt.subscribe(list(filters))
        return self.codes.get(timeout=WAIT)

    def end(self):
        self.mqtt.disconnect()
        self.mqtt.loop_stop()

    def drop(self):
        """Ends without DISCONNECT."""
        self.mqtt.socket().shutdown(socket.SHUT_RDWR)
        self.gone.get(timeout=WAIT)
        self.mqtt.loop_stop()


def quiet(client, seconds=0.3):
    try:
        raise AssertionError(f"unexpected {client.got.get(timeout=seconds).topic}")
    except queue.Empty:
        pass


def basic():
    watcher, device = Client("watcher"), Client("A")
    assert watcher.subscribe(("devices/#", 2)) == [0]
    for qos in 0, 1:
        device.publish("devices/A/telemetry", f"q{qos}", qos)
        message = watcher.got.get(timeout=WAIT)
        assert (message.topic, message.payload, message.qos) == ("devices/A/telemetry", b"q%d" % qos, 0)
    watcher.end(), device.end()


def retained():
    device = Client("A")
    device.publish("devices/A/state", "kept", retain=True)
    device.publish("devices/A/telemetry", "not kept", retain=True)
    watcher = Client("watcher")
    watcher.subscribe(("+/+/+", 0))
    message = watcher.got.get(timeout=WAIT)
    assert message.retain and message.payload == b"kept"
    quiet(watcher)
    watcher.end()
    device.publish("devices/A/state", "", retain=True)
    watcher = Client("watcher")
    watcher.subscribe(("#", 0))
    quiet(watcher)
    watcher.end(), device.end()


def will_message():
    watcher = Client("watcher")
    watcher.subscribe(("devices/+/state", 0))
    polite = Client("A", will="devices/A/state")
    polite.end()
    quiet(watcher)
    Client("A", will="devices/A/state").drop()
    assert watcher.got.get(timeout=WAIT).payload == b"will"
    cleaner = Client("A")
    cleaner.publish("devices/A/state", "", retain=True)
    cleaner.end(), watcher.end()


def zero_length_clientid():
    assert Client("").code == 0
    # paho refuses to send the forbidden form, so it is sent by hand.
    with socket.create_connection(("127.0.0.1", PORT), timeout=WAIT) as raw:
        raw.sendall(bytes([0x10, 12, 0, 4]) + b"MQTT" + bytes([4, 0, 0, 60, 0, 0]))
        assert raw.recv(10) == bytes([0x20, 2, 0, 2])
        assert raw.recv(10) == b""


def session_takeover():
    first = Client("A")
    second = Client("A")
    assert first.gone.get(timeout=WAIT) and second.code == 0
    second.publish("devices/A/telemetry", "{}")
    first.mqtt.loop_stop(), second.end()


def persistent_session():
    first = Client("tool", clean=False)
    first.subscribe(("devices/A/telemetry", 0))
    first.end()
    second, device = Client("tool", clean=False), Client("A")
    assert second.present
    device.publish("devices/A/telemetry", "again")
    assert second.got.get(timeout=WAIT).payload == b"again"
    second.end()
    third = Client("tool")
    assert not third.present
    third.end(), device.end()


def keepalive_timeout():
    with socket.create_connection(("127.0.0.1", PORT), timeout=WAIT) as raw:
        raw.sendall(bytes([0x10, 13, 0, 4]) + b"MQTT" + bytes([4, 2, 0, 1, 0, 1]) + b"B")
        assert raw.recv(10) == bytes([0x20, 2, 0, 0])
        begun = time.monotonic()
        assert raw.recv(10) == b"" and 1.4 < time.monotonic() - begun < 3
    alive = Client("B", keepalive=2)
    time.sleep(4)
    alive.publish("devices/B/telemetry", "{}")
    alive.end()


def subscribe_failure():
    device = Client("A")
    assert device.subscribe(("devices/B/execute", 1), ("devices/A/execute", 2), ("#", 0)) == [0x80, 1, 0x80]
    device.end()


def overlapping_subscriptions():
    watcher, device = Client("watcher"), Client("A")
    watcher.subscribe(("devices/#", 0), ("devices/A/+", 1), ("+/A/telemetry", 2))
    device.publish("devices/A/telemetry", "once")
    assert watcher.got.get(timeout=WAIT).payload == b"once"
    quiet(watcher)
    watcher.end(), device.end()


def unsubscribe():
    watcher, device = Client("watcher"), Client("A")
    watcher.subscribe(("devices/#", 0), ("devices/+/result", 0))
    watcher.mqtt.unsubscribe("devices/#")
    assert watcher.codes.get(timeout=WAIT) == "unsubscribed"
    device.publish("devices/A/telemetry", "unseen")
    quiet(watcher)
    device.publish("devices/A/result", "seen")
    assert watcher.got.get(timeout=WAIT).payload == b"seen"
    watcher.end(), device.end()


def dollar_topics():
    watcher = Client("watcher")
    assert watcher.subscribe(("$SYS/#", 0), ("#", 0)) == [0x80, 0]
    quiet(watcher)
    watcher.end()
    forbidden = Client("tool")
    forbidden.mqtt.publish("$SYS/uptime", "1", qos=1)
    assert forbidden.gone.get(timeout=WAIT) and forbidden.acks.empty()
    forbidden.mqtt.loop_stop()


def qos_2_is_refused():
    device = Client("A")
    device.mqtt.publish("devices/A/telemetry", "{}", qos=2)
    assert device.gone.get(timeout=WAIT) and device.acks.empty()
    device.mqtt.loop_stop()


CASES = [
    basic, retained, will_message, zero_length_clientid, session_takeover, persistent_session, keepalive_timeout,
    subscribe_failure, overlapping_subscriptions, unsubscribe, dollar_topics, qos_2_is_refused,
]  # fmt: skip

failures = 0
for case in CASES:
    try:
        case()
        print(f"ok      paho {case.__name__}", flush=True)
    except (AssertionError, queue.Empty, OSError) as error:
        failures += 1
        print(f"FAILED  paho {case.__name__}: {error!r}", flush=True)
sys.exit(1 if failures else 0)
