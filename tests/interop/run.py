#!/usr/bin/env python3
"""The floor endpoint with clients nobody here wrote: paho, mosquitto_pub/_sub, MQTT.js.

    python3 tests/interop/run.py [PATH_OF_THE_EXAMPLE]

Builds and starts `examples/endpoint.rs` on a free port of this machine, installs the clients into a temporary folder
(Python's venv and npm), runs every suite, and exits non-zero if any case fails. mosquitto's clients have to be
installed (Debian: mosquitto-clients).
"""

import json
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class Endpoint:
    """The endpoint as a child process; its JSON lines are read on a thread."""

    def __init__(self, program):
        self.child = subprocess.Popen([program, "127.0.0.1:0", "A,B"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines = queue.Queue(maxsize=10_000)
        threading.Thread(target=self._read, daemon=True).start()
        self.port = int(self.expect(lambda line: "listening" in line)["listening"].rsplit(":", 1)[1])

    def _read(self):
        for line in self.child.stdout:
            self.lines.put(json.loads(line))

    def expect(self, wanted, seconds=10):
        while True:
            line = self.lines.get(timeout=seconds)
            if wanted(line):
                return line

    def stop(self):
        self.child.stdin.close()
        if self.child.wait(timeout=5) != 0:
            raise SystemExit("the endpoint did not end well")


def program(arguments):
    if arguments:
        return arguments[0]
    build = ["cargo", "build", "--quiet", "--package", "floorgate", "--example", "endpoint", "--message-format=json"]
    built = subprocess.run(build, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = [json.loads(line).get("executable") for line in built.splitlines()]
    return next(path for path in found if path and pathlib.Path(path).name == "endpoint")


def mosquitto(endpoint):
    """mosquitto_pub with QoS 0, 1 and retained; mosquitto_sub as a device and as a watcher; what is refused."""
    port = ["-h", "127.0.0.1", "-p", str(endpoint.port), "-V", "311"]

    def publish(*arguments, fails=False):
        done = subprocess.run(["mosquitto_pub", *port, *arguments], timeout=20, capture_output=True, text=True)
        # For QoS 0 mosquitto_pub cannot see that the endpoint closed.
        assert (done.returncode != 0) == fails, (arguments, done)

    for qos in "0", "1":
        publish("-q", qos, "-t", "devices/A/telemetry", "-m", f'{{"q":{qos}}}')
        endpoint.expect(lambda line: line.get("payload") == f'{{"q":{qos}}}')
    publish("-q", "1", "-r", "-i", "A", "-t", "devices/A/state", "-m", '{"online":true}')
    seen = subprocess.run(["mosquitto_sub", *port, "-t", "#", "-C", "1", "-W", "10", "-F", "%r %t %p"], timeout=20, capture_output=True, text=True)
    assert seen.stdout.strip() == '1 devices/A/state {"online":true}', seen

    device = subprocess.Popen(["mosquitto_sub", *port, "-i", "B", "-q", "1", "-t", "devices/B/execute", "-C", "1", "-W", "10"], stdout=subprocess.PIPE, text=True)
    for _ in range(50):
        endpoint.child.stdin.write("order B {}\n")
        endpoint.child.stdin.flush()
        if "Acknowledged" in endpoint.expect(lambda line: "order" in line)["handed"]:
            break
        time.sleep(0.1)  # until mosquitto_sub has subscribed, the order has nowhere to go
    assert device.communicate(timeout=20)[0].strip() == "{}"

    refused = subprocess.run(["mosquitto_sub", *port, "-t", "elsewhere", "-W", "3"], timeout=20, capture_output=True, text=True)
    assert "denied" in refused.stderr or refused.returncode != 0, refused
    old = subprocess.run(["mosquitto_pub", *port[:-1], "mqttv5", "-q", "1", "-t", "devices/A/telemetry", "-m", "{}"], timeout=20, capture_output=True, text=True)
    assert old.returncode != 0, old


def paho(endpoint, folder):
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "paho-mqtt>=2,<3"], check=True)
    subprocess.run([python, HERE / "paho_cases.py", str(endpoint.port)], check=True, timeout=120)


def mqtt_js(endpoint, folder):
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, "mqtt@5"], check=True)
    script = shutil.copy(HERE / "mqttjs_cases.cjs", folder)
    subprocess.run(["node", script, str(endpoint.port)], check=True, timeout=120)


def main():
    missing = [tool for tool in ("mosquitto_pub", "mosquitto_sub", "npm", "node") if not shutil.which(tool)]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)} (Debian: mosquitto-clients, nodejs, npm)")
    path, failed = program(sys.argv[1:]), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        suites = {"mosquitto": mosquitto, "paho": lambda e: paho(e, folder), "MQTT.js": lambda e: mqtt_js(e, folder)}
        for name, suite in suites.items():
            endpoint = Endpoint(path)
            try:
                suite(endpoint)
                print(f"ok      {name}")
            except (AssertionError, OSError, queue.Empty, subprocess.SubprocessError) as error:
                failed.append(name)
                print(f"FAILED  {name}: {error!r}")
            finally:
                endpoint.stop()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
