// MQTT.js as a device and as a watcher: publish with QoS 0 and 1, retained state, last will, rights.
const assert = require("node:assert");
const { once } = require("node:events");
const mqtt = require("mqtt");

const url = `mqtt://127.0.0.1:${process.argv[2]}`;
const open = (clientId, more = {}) => mqtt.connectAsync(url, { clientId, protocolVersion: 4, reconnectPeriod: 0, ...more });
const message = async (client) => {
  const [topic, payload] = await once(client, "message", { signal: AbortSignal.timeout(5000) });
  return `${topic} ${payload}`;
};

(async () => {
  const watcher = await open("watcher");
  const [granted] = await watcher.subscribeAsync("devices/#", { qos: 1 });
  assert.equal(granted.qos, 0);

  const will = { topic: "devices/A/state", payload: "gone", qos: 1, retain: false };
  const device = await open("A", { will });
  for (const qos of [0, 1]) {
    const seen = message(watcher);
    await device.publishAsync("devices/A/telemetry", `q${qos}`, { qos });
    assert.equal(await seen, `devices/A/telemetry q${qos}`);
  }
  await device.subscribeAsync("devices/A/execute", { qos: 1 });
  await assert.rejects(device.subscribeAsync("devices/B/execute", { qos: 1 }));

  const last = message(watcher);
  device.stream.destroy();
  assert.equal(await last, "devices/A/state gone");

  const liar = await open("B");
  liar.on("error", () => {});
  liar.publish("devices/A/telemetry", "{}", { qos: 1 }, () => {});
  await once(liar, "close", { signal: AbortSignal.timeout(5000) });
  await assert.rejects(open("x", { protocolVersion: 5 }));
  await watcher.endAsync();
  console.log("ok      MQTT.js");
  process.exit(0);
})().catch((error) => {
  console.error("FAILED  MQTT.js", error);
  process.exit(1);
});
