#!/usr/bin/env python3
"""`floorgate-fleet serve` with programs that nobody here wrote: an OpenID provider, another SDK's MCP client, a browser's rules for
pages, the official conformance suite, mosquitto as the broker and moto as the tables. Behind them the real daemon with simulated devices, which say themselves how
often they executed a command. Started by `cargo xtask fleet`, which installs them.

    run.py BINARY NODE NODE_MODULES DYNAMODB_URL RESULTS_FOLDER FLOOR BROKER

Loopback only. Ends what it starts; exits non-zero if any case fails.
"""

import asyncio
import base64
import datetime
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import boto3
import person
from mcp import Client
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata

HERE = pathlib.Path(__file__).resolve().parent
BINARY, NODE, MODULES, DYNAMODB, RESULTS, FLOOR, BROKER = sys.argv[1:8]
DEVICE = "SENSOR-LINE7-PRESS-001"
VALVE = "ACTUATOR-LINE3-VALVE-001"
# Commanded by people; the other two by programs.
TEMPERATURE = "SENSOR-LINE7-TEMP-002"
VIBRATION = "SENSOR-LINE3-VIBR-001"
TOOLS = ["get_device_status", "list_devices", "send_command", "get_telemetry_history", "get_command_status", "list_commands"]
AWS = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_REGION": "us-east-1",
    "AWS_ENDPOINT_URL_DYNAMODB": DYNAMODB,
}
children = []
passed = 0


def check(what, holds, shown=""):
    global passed
    if not holds:
        raise SystemExit(f"FAILED: {what}: {str(shown)[:2000]}")
    passed += 1
    print(f"ok: {what}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(port, arguments, **environment):
    child = subprocess.Popen(arguments, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    children.append(child)
    for _ in range(200):
        if child.poll() is not None:
            raise SystemExit(f"{arguments[0]} ended with {child.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return child
        time.sleep(0.05)
    raise SystemExit(f"{arguments[0]} does not listen on {port}")


def dynamodb():
    return boto3.client("dynamodb", endpoint_url=DYNAMODB, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")


def tables():
    """The tables as `floorgate provision` makes them, with a block of history and a command. The daemon adds its devices."""
    client = dynamodb()

    def make(name, keys, indexes=()):
        text = {key for _, key in keys} | {key for index in indexes for key in [index[1]]}
        extra = {}
        if indexes:
            extra["GlobalSecondaryIndexes"] = [
                {"IndexName": index, "KeySchema": [{"AttributeName": key, "KeyType": "HASH"}], "Projection": {"ProjectionType": "ALL"}}
                for index, key in indexes
            ]
        client.create_table(
            TableName=name,
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in sorted(text)],
            KeySchema=[{"AttributeName": key, "KeyType": kind} for kind, key in keys],
            BillingMode="PAY_PER_REQUEST",
            **extra,
        )

    make("iot-devices", [("HASH", "device_id")], [("location-index", "location")])
    make("iot-telemetry-history", [("HASH", "device_id"), ("RANGE", "timestamp")])
    make("iot-commands", [("HASH", "device_id"), ("RANGE", "command_id")])
    now = datetime.datetime.now(datetime.timezone.utc)
    stamp = now.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    text = lambda value: {"S": value}
    client.put_item(
        TableName="iot-telemetry-history",
        Item={
            "device_id": text(DEVICE), "timestamp": text(stamp), "end": text(stamp), "count": {"N": "1"},
            "gateway_id": text("GATEWAY-FLOOR1-001"), "offsets_ms": {"L": [{"N": "0"}]},
            "readings": {"M": {"pressure_psi": {"L": [{"N": "87.5"}]}}},
        },
    )
    client.put_item(
        TableName="iot-commands",
        Item={
            "device_id": text(DEVICE), "command_id": text("c-1"), "command": text("recalibrate"), "parameters": {"M": {}},
            "issuer": text("operator-7"), "issued_at": text(stamp), "expires_at": text(stamp), "status": text("succeeded"),
            "completed_at": text(stamp),
        },
    )


class Floor:
    """The daemon and its devices."""

    def __init__(self):
        table = DYNAMODB.removeprefix("http://")
        self.child = subprocess.Popen([FLOOR, BROKER, table], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        children.append(self.child)
        check("the daemon and its devices start", self.child.stdout.readline() == "ready\n")
        for device in [DEVICE, VALVE, TEMPERATURE, VIBRATION]:
            self.until_online(device)

    def until_online(self, device):
        for _ in range(300):
            item = dynamodb().get_item(TableName="iot-devices", Key={"device_id": {"S": device}}).get("Item", {})
            word = [item.get(name, {}).get("S") for name in ["status", "admin_state"]]
            if word == ["online", "in_service"]:
                return
            if self.child.poll() is not None:
                raise SystemExit(f"the floor ended with {self.child.returncode}")
            time.sleep(0.2)
        raise SystemExit(f"{device} is not online after a minute: {item}")

    def executions(self, command_id):
        self.child.stdin.write(command_id + "\n")
        self.child.stdin.flush()
        return int(self.child.stdout.readline())

    def end(self):
        self.child.stdin.close()
        return self.child.wait(timeout=30)


async def commands(mcp, mode, floor):
    """To the device and back, by an operator."""
    ask = {"device_id": DEVICE, "command": "recalibrate", "wait_seconds": 30, "idempotency_key": f"{mode}-1"}
    sent = await mcp.call_tool("send_command", ask)
    told = sent.structured_content or {}
    check(f"{mode}: a command is executed", (told.get("status"), told.get("delivered")) == ("succeeded", True), sent)
    check(f"{mode}: by the device, once", floor.executions(told["command_id"]) == 1)
    check(f"{mode}: its issuer is the operator", told["issuer"] == "operator", told)
    again = (await mcp.call_tool("send_command", ask)).structured_content
    same = (again["command_id"], again["repeated"], again["status"]) == (told["command_id"], True, "succeeded")
    check(f"{mode}: a repeat answers the first one's outcome", same, again)
    check(f"{mode}: and the device does nothing", floor.executions(told["command_id"]) == 1)
    dry = {"device_id": DEVICE, "command": "recalibrate", "wait_seconds": 30, "dry_run": True}
    dry = (await mcp.call_tool("send_command", dry)).structured_content
    check(f"{mode}: a dry run reaches the gateway", (dry["reason"], dry["delivered"]) == ("DRY_RUN_OK", False), dry)
    check(f"{mode}: and no device", floor.executions(dry["command_id"]) == 0)


async def refused(mcp, mode, floor):
    """What the gateway refuses, though the table says otherwise, by a senior operator."""
    await mcp.call_tool("get_device_status", {"device_id": VALVE})
    maintain = {"device_id": VALVE, "command": "set_status", "parameters": {"status": "maintenance"}, "wait_seconds": 30}
    told = (await mcp.call_tool("send_command", maintain)).structured_content
    check(f"{mode}: maintenance is set", told["status"] == "succeeded", told)
    # The gateway writes its word and then its device's state; only then is the table's word ours to falsify.
    item = {"TableName": "iot-devices", "Key": {"device_id": {"S": VALVE}}}
    for _ in range(100):
        if dynamodb().get_item(**item)["Item"]["status"]["S"] == "maintenance":
            break
        time.sleep(0.2)
    dynamodb().update_item(
        **item, UpdateExpression="SET #s = :s", ExpressionAttributeNames={"#s": "status"}, ExpressionAttributeValues={":s": {"S": "online"}}
    )
    sent = await mcp.call_tool("send_command", {"device_id": VALVE, "command": "reboot", "wait_seconds": 30})
    told = json.loads(answered(sent))
    word = (sent.is_error, told["error_code"], told["status"], told["delivered"])
    check(f"{mode}: a refusal of the gateway is an error", word == (True, "MAINTENANCE", "rejected", False), told)
    check(f"{mode}: with its name, and no execution", told["gateway_id"] and floor.executions(told["command_id"]) == 0, told)
    lift = {**maintain, "parameters": {"status": "online"}}
    told = (await mcp.call_tool("send_command", lift)).structured_content
    check(f"{mode}: maintenance is lifted", told["status"] == "succeeded", told)
    floor.until_online(VALVE)
    sent = await mcp.call_tool("send_command", {"device_id": VALVE, "command": "reboot", "wait_seconds": 30})
    told = sent.structured_content or {}
    check(f"{mode}: a senior operator reboots", (told.get("status"), told.get("delivered")) == ("succeeded", True), sent)
    check(f"{mode}: the device did, once", floor.executions(told["command_id"]) == 1)


class Memory:
    """Where the SDK keeps its token."""

    tokens = None
    info = None

    async def get_tokens(self):
        return self.tokens

    async def set_tokens(self, tokens):
        self.tokens = tokens

    async def get_client_info(self):
        return self.info

    async def set_client_info(self, info):
        self.info = info


def client(url, issuer, name, mode):
    """An MCP client that finds out by itself where its token comes from."""
    oauth = ClientCredentialsOAuthProvider(url, Memory(), name, f"{name}-secret", scope="iot/read iot/command", issuer=issuer)
    return Client(streamable_http_client(url, http_client=create_mcp_http_client(auth=oauth)), mode=mode)


def signed_in(url, issuer, browser, callback, mode, known=True):
    """An MCP client whose person signs in in a browser. It finds out by itself where, and asks for more when it is told to.

    It is registered with the provider as `console`, or (`known` false) registers itself."""
    oauth = OAuthClientMetadata(redirect_uris=[callback], token_endpoint_auth_method="none", client_name="suite")
    memory, told = Memory(), {}
    if known:
        memory.info = OAuthClientInformationFull(**oauth.model_dump(), client_id="console", issuer=issuer)

    async def redirect(address):
        told.update(await asyncio.to_thread(browser.go, address, callback))

    async def come_back():
        return AuthorizationCodeResult(code=told["code"], state=told.get("state"), iss=told.get("iss"))

    oauth = OAuthClientProvider(url, oauth, memory, redirect, come_back)
    return Client(streamable_http_client(url, http_client=create_mcp_http_client(auth=oauth)), mode=mode)


def answered(result):
    return result.content[0].text


async def operators(url, issuer, mode, floor):
    history = {"device_id": DEVICE}
    async with client(url, issuer, "operator", mode) as mcp:
        check(f"{mode}: an operator sees the tools", [tool.name for tool in (await mcp.list_tools()).tools] == TOOLS)
        early = await mcp.call_tool("send_command", {"device_id": DEVICE, "command": "recalibrate"})
        check(f"{mode}: no command before the status", early.is_error and "read it first" in answered(early), early)
        status = await mcp.call_tool("get_device_status", {"device_id": DEVICE})
        check(f"{mode}: get_device_status", status.structured_content["device_id"] == DEVICE, status)
        check(f"{mode}: text and structure agree", json.loads(answered(status)) == status.structured_content, status)
        listed = await mcp.call_tool("list_devices", {"location": "factory-floor-1/*"})
        check(f"{mode}: list_devices", listed.structured_content["count"] == 4, listed)
        told = await mcp.call_tool("get_telemetry_history", history)
        check(f"{mode}: get_telemetry_history", not told.is_error and "87.5" in answered(told), told)
        one = await mcp.call_tool("get_command_status", {"device_id": DEVICE, "command_id": "c-1"})
        check(f"{mode}: get_command_status", one.structured_content["status"] == "succeeded", one)
        all_of = await mcp.call_tool("list_commands", {"device_id": DEVICE})
        check(f"{mode}: list_commands", not all_of.is_error and "c-1" in answered(all_of), all_of)
        await commands(mcp, mode, floor)
        reboot = await mcp.call_tool("send_command", {"device_id": DEVICE, "command": "reboot"})
        check(f"{mode}: an operator may not reboot", "AuthorizeActionException" in answered(reboot), reboot)
        wrong = await mcp.call_tool("get_device_status", {"device_id": 7})
        check(f"{mode}: arguments that do not fit", wrong.is_error and "INVALID_ARGUMENTS" in answered(wrong), wrong)
        try:
            await mcp.call_tool("drop_tables", {})
            check(f"{mode}: an unknown tool is an error", False)
        except Exception as error:
            check(f"{mode}: an unknown tool is an error", "Unknown tool" in str(error), error)
    async with client(url, issuer, "senior", mode) as mcp:
        await refused(mcp, mode, floor)
    async with client(url, issuer, "visitor", mode) as mcp:
        check(f"{mode}: a visitor sees nothing", (await mcp.list_tools()).tools == [])
        denied = await mcp.call_tool("list_devices", {})
        check(f"{mode}: and may do nothing", denied.is_error and "denied by default" in answered(denied), denied)


async def people(url, issuer, callback, mode, floor):
    """The same as people do it: authorization code with PKCE."""
    browser = person.Browser("ada")
    async with signed_in(url, issuer, browser, callback, mode) as mcp:
        status = await mcp.call_tool("get_device_status", {"device_id": VIBRATION})
        check(f"{mode}: a person signs in and reads", status.structured_content["device_id"] == VIBRATION, status)
        check(f"{mode}: they were asked who they are, and whether the client may", browser.pages == ["login", "consent"], browser.pages)
        asked = browser.asked[0]
        right = (asked["code_challenge_method"], asked["resource"], asked["client_id"]) == ("S256", url, "console")
        check(f"{mode}: the client uses PKCE and names the server", right and "iot/command" not in asked["scope"], asked)
        ask = {"device_id": VIBRATION, "command": "recalibrate", "wait_seconds": 30}
        told = (await mcp.call_tool("send_command", ask)).structured_content or {}
        check(f"{mode}: a person's command is executed", (told.get("status"), told.get("delivered")) == ("succeeded", True), told)
        check(f"{mode}: once, in their name", (floor.executions(told["command_id"]), told["issuer"]) == (1, "ada@plant (ada)"), told)
        scopes = browser.asked[1]["scope"].split()
        check(f"{mode}: they were asked for the scope it takes, once", {"iot/read", "iot/command"} <= set(scopes) and len(browser.asked) == 2, browser.asked)
        check(f"{mode}: and had not to sign in again", browser.pages == ["login", "consent", "consent"], browser.pages)
        reboot = await mcp.call_tool("send_command", {"device_id": VIBRATION, "command": "reboot"})
        check(f"{mode}: an operator's person may not reboot", "AuthorizeActionException" in answered(reboot), reboot)
    async with signed_in(url, issuer, person.Browser("grace"), callback, mode) as mcp:
        await mcp.call_tool("get_device_status", {"device_id": TEMPERATURE})
        told = (await mcp.call_tool("send_command", {"device_id": TEMPERATURE, "command": "reboot", "wait_seconds": 30})).structured_content or {}
        check(f"{mode}: a senior operator's person reboots", (told.get("status"), told.get("issuer")) == ("succeeded", "grace@plant (grace)"), told)
    async with signed_in(url, issuer, person.Browser("mallory"), callback, mode) as mcp:
        check(f"{mode}: a visitor's person sees nothing", (await mcp.list_tools()).tools == [])
    browser = person.Browser("ada")
    async with signed_in(url, issuer, browser, callback, mode, known=False) as mcp:
        listed = await mcp.call_tool("list_devices", {"location": "factory-floor-1/*"})
        check(f"{mode}: a client that registers itself gets in as well", listed.structured_content["count"] == 4, listed)
        check(f"{mode}: under a name the provider gave it", browser.asked[0]["client_id"] not in ("console", ""), browser.asked)


def token(issuer, name, resource, scope="iot/read iot/command"):
    form = {"grant_type": "client_credentials", "resource": resource, "scope": scope}
    request = urllib.request.Request(f"{issuer}/token", urllib.parse.urlencode(form).encode())
    basic = base64.b64encode(f"{name}:{name}-secret".encode()).decode()
    request.add_header("authorization", f"Basic {basic}")
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["access_token"]


def post(url, bearer, tool):
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": {}}}
    request = urllib.request.Request(url, json.dumps(message).encode())
    for name, value in {"content-type": "application/json", "accept": "application/json, text/event-stream", "authorization": f"Bearer {bearer}"}.items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("www-authenticate", "")


def brief(url, callback):
    """A person's token that lives 3 s, and when it came."""
    short = person.tokens(url, "ada", "brief", callback, "iot/read")["access_token"]
    began = time.monotonic()
    check("a person's token counts while it lives", post(url, short, "list_devices")[0] == 200)
    return short, began


def expired(url, short):
    short, began = short
    # 3 s of life, 60 s of patience with clocks, and a second.
    time.sleep(max(0, began + 64 - time.monotonic()))
    status, said = post(url, short, "list_devices")
    check("and does not when it has expired", status == 401 and "the token has expired" in said, said)


def wrong_tokens_of_people(url, callback):
    """Each is genuine, and differs from a good one in one thing."""
    good = person.tokens(url, "ada", "console", callback, "openid iot/read iot/command")
    check("a person's token counts", post(url, good["access_token"], "list_devices")[0] == 200)
    status, said = post(url, good["id_token"], "list_devices")
    check("the ID token that came with it does not", status == 401 and "invalid_token" in said, said)
    other = person.tokens(url, "ada", "console", callback, "iot/read iot/command", "https://billing.example/")
    status, said = post(url, other["access_token"], "list_devices")
    check("nor does one of theirs for another resource", status == 401 and "another service" in said, said)
    less = person.tokens(url, "ada", "console", callback, "iot/read")["access_token"]
    status, said = post(url, less, "send_command")
    check("one with less scope is asked to get it", status == 403 and 'scope="iot/command"' in said, said)
    check("and does for what it is for", post(url, less, "list_devices")[0] == 200)
    none = person.tokens(url, "ada", "console", callback, "openid")["access_token"]
    status, said = post(url, none, "list_devices")
    check("one without any does for nothing", status == 403 and 'scope="iot/read"' in said, said)


def tokens(url, issuer):
    good = token(issuer, "operator", url)
    check("a token of the provider's counts", post(url, good, "list_devices")[0] == 200)
    status, said = post(url, token(issuer, "operator", "https://billing.example/"), "list_devices")
    check("one for another resource does not", status == 401 and "invalid_token" in said, said)
    status, said = post(url, token(issuer, "operator", url, "iot/read"), "send_command")
    check("one without the scope is asked to get it", status == 403 and 'scope="iot/command"' in said, said)
    head, body, signature = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    claims["groups"] = ["senior_operator"]
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    check("one that was changed does not", post(url, f"{head}.{forged}.{signature}", "list_devices")[0] == 401)


def pages(url, allowed, bearer):
    """What a browser lets pages do: one of the configured origin, and one of another."""

    def page(origin):
        told = [NODE, str(HERE / "page.mjs"), MODULES, url, origin]
        ended = subprocess.run(told, env={**os.environ, "PAGE_TOKEN": bearer}, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
        return json.loads(ended.stdout)

    told = page(allowed)
    check("a configured page may read where to get a token", told["refused"]["status"] == 401 and "resource_metadata" in told["refused"]["challenge"], told)
    check("and what is there", json.loads(told["metadata"]["text"])["resource"] == url, told)
    check("and what its call answers", told["answered"]["status"] == 200 and DEVICE in told["answered"]["text"], told)
    told = page("http://evil.example")
    check("another page gets nothing through", [told["refused"], told["answered"]] == [{"status": 0, "text": "", "challenge": None}] * 2, told)


def conformance(port, forward, bearer):
    """Both revisions through a forwarder that adds the token. Scenarios for things that are not served are listed by name."""
    start(forward, [NODE, str(HERE / "forward.mjs"), str(forward), str(port)], FORWARD_TOKEN=bearer)
    lines = []
    for revision in ["2025-11-25", "2026-07-28"]:
        suite = [NODE, f"{MODULES}/@modelcontextprotocol/conformance/dist/index.js", "server"]
        suite += ["--url", f"http://127.0.0.1:{forward}/mcp", "--suite", "all", "--spec-version", revision]
        suite += ["--expected-failures", str(HERE / f"expected-{revision}.yml"), "--output-dir", f"{RESULTS}/{revision}"]
        ended = subprocess.run(suite, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
        pathlib.Path(RESULTS, f"{revision}.txt").write_text(ended.stdout)
        lines.append((revision, ended.returncode, ended.stdout))
    for revision, code, said in lines:
        tail = "\n".join(said.splitlines()[-60:])
        check(f"conformance with {revision}", code == 0, tail)


def main():
    pathlib.Path(RESULTS).mkdir(parents=True, exist_ok=True)
    tables()
    floor = Floor()
    port, idp, forward = free_port(), free_port(), free_port()
    url, issuer = f"http://127.0.0.1:{port}/mcp", f"http://127.0.0.1:{idp}"
    # Nobody listens there: who is sent back to it has arrived.
    callback = "http://127.0.0.1:9/callback"
    start(idp, [NODE, str(HERE / "oidc.mjs"), MODULES, str(idp), url, callback])
    serve = [BINARY, "serve", "--listen", f"127.0.0.1:{port}", "--issuer", issuer, "--groups-claim", "groups"]
    # The conformance suite calls as a page of the address that it calls.
    serve += ["--allow-origin", f"http://127.0.0.1:{forward}"]
    server = None
    for mode in ["legacy", "2026-07-28"]:
        if server:
            # What was read in the other revision would entitle to commands in this one.
            server.terminate()
            check("it ends well at SIGTERM", server.wait(timeout=15) == 0)
        # Both revisions reboot the valve, which is more than an operator may within so short a time.
        server = start(port, serve, FLOORGATE_LOG="error", FLOORGATE_BUDGETS="reboot=10/900", FLOORGATE_MQTT_URL=f"mqtt://{BROKER}", **AWS)
        asyncio.run(operators(url, issuer, mode, floor))
        asyncio.run(people(url, issuer, callback, mode, floor))
    short = brief(url, callback)
    tokens(url, issuer)
    wrong_tokens_of_people(url, callback)
    pages(url, f"http://127.0.0.1:{forward}", token(issuer, "operator", url))
    conformance(port, forward, token(issuer, "senior", url))
    expired(url, short)
    server.terminate()
    check("it ends well at SIGTERM", server.wait(timeout=15) == 0)
    check("the daemon ends in order", floor.end() == 0)
    print(f"{passed} passed")


try:
    main()
finally:
    for child in children:
        if child.poll() is None and child.stdin:
            # The floor ends its daemon when nobody asks it any more.
            child.stdin.close()
            try:
                child.wait(timeout=20)
            except subprocess.TimeoutExpired:
                pass
        if child.poll() is None:
            child.kill()
            child.wait()
