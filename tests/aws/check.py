"""The AWS template against AWS's own models, without AWS: check.py TEMPLATE

Each resource becomes the parameters of the API call that makes it, and botocore's models judge them: names, types, what is
required, and (here, because botocore leaves it to the service) patterns, lengths and enumerations. What the template writes
about tables, groups and roles is compared with what the programs need. The presence function is run against moto.
"""

import json
import os
import re
import sys

import botocore.session
import regex
from botocore.validate import ParamValidator
from cfnlint.decode.cfn_yaml import load

ACCOUNT, REGION = "123456789012", "us-east-1"
SESSION = botocore.session.Session()
PSEUDO = {
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::AccountId": ACCOUNT,
    "AWS::URLSuffix": "amazonaws.com",
}
# What `!Ref` and `!GetAtt` answer, in the form that the service gives it.
MADE = {
    "Operators": REGION + "_AbCdEfGhI",
    "McpClient": "7abcdefghijklmnopqrstuvwxy",
    "SignIn": "floorgate-" + ACCOUNT,
    "PolicyEngine.PolicyEngineId": "floorgate-abcdefghij",
    "PolicyEngine.PolicyEngineArn": f"arn:aws:bedrock-agentcore:{REGION}:{ACCOUNT}:policy-engine/floorgate-abcdefghij",
    "Gateway.GatewayIdentifier": "iotdevicegateway-abcdefghij",
    "Gateway.GatewayArn": f"arn:aws:bedrock-agentcore:{REGION}:{ACCOUNT}:gateway/iotdevicegateway-abcdefghij",
    "Gateway.GatewayUrl": "https://iotdevicegateway-abcdefghij.gateway.bedrock-agentcore.us-east-1.amazonaws.com/mcp",
    "PresenceRule.Arn": f"arn:aws:iot:{REGION}:{ACCOUNT}:rule/floorgate_presence",
}
# Names of the API that are not CloudFormation's with a small first letter.
RENAMED = {"CustomJWTAuthorizer": "customJWTAuthorizer", "KmsKeyArn": "kmsKeyArn"}
NOTHING = object()


class Template:
    """The template with its parameters' defaults."""

    def __init__(self, file):
        self.body = load(file)
        self.parameters = {name: parameter["Default"] for name, parameter in self.body["Parameters"].items()}
        self.conditions = {name: self.truth(c) for name, c in self.body["Conditions"].items()}

    def of_type(self, kind):
        return {name: r for name, r in self.body["Resources"].items() if r["Type"] == kind}

    def properties(self, name):
        return self.resolve(self.body["Resources"][name]["Properties"])

    def truth(self, condition):
        ((kind, value),) = condition.items()
        if kind == "Fn::Not":
            return not self.truth(value[0])
        assert kind == "Fn::Equals", kind
        return self.resolve(value[0]) == self.resolve(value[1])

    def resolve(self, value):
        if isinstance(value, list):
            return [r for r in map(self.resolve, value) if r is not NOTHING]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((kind, inner),) = value.items()
            if kind == "Ref":
                return self.reference(inner)
            if kind == "Fn::GetAtt":
                return self.attribute(inner if isinstance(inner, str) else ".".join(inner))
            if kind == "Fn::Sub":
                return self.substituted(inner)
            if kind == "Fn::If":
                return self.resolve(inner[1] if self.conditions[inner[0]] else inner[2])
            assert not kind.startswith("Fn::"), kind
        resolved = {str(name): self.resolve(inner) for name, inner in value.items()}
        return {name: inner for name, inner in resolved.items() if inner is not NOTHING}

    def reference(self, name):
        if name == "AWS::NoValue":
            return NOTHING
        if name in PSEUDO:
            return PSEUDO[name]
        if name in self.parameters:
            return self.parameters[name]
        if name in MADE:
            return MADE[name]
        resource = self.body["Resources"][name]
        for key in ("TableName", "FunctionName", "LogGroupName", "PolicyName", "RoleAlias"):
            if key in resource["Properties"]:
                return resource["Properties"][key]
        raise AssertionError(f"!Ref {name}")

    def attribute(self, name):
        if name in MADE:
            return MADE[name]
        resource, attribute = name.split(".")
        kind = self.body["Resources"][resource]["Type"]
        assert attribute == "Arn", name
        form = {
            "AWS::DynamoDB::Table": "dynamodb:{r}:{a}:table/{n}",
            "AWS::Serverless::Function": "lambda:{r}:{a}:function:{n}",
            "AWS::Logs::LogGroup": "logs:{r}:{a}:log-group:{n}:*",
            "AWS::IAM::Role": "iam::{a}:role/{n}",
        }[kind]
        own = resource if kind == "AWS::IAM::Role" else self.reference(resource)
        return "arn:aws:" + form.format(r=REGION, a=ACCOUNT, n=own)

    def substituted(self, inner):
        text, names = inner if isinstance(inner, list) else (inner, {})

        def one(match):
            name = match.group(1)
            if name.startswith("!"):
                return "${" + name[1:] + "}"
            if name in names:
                return self.resolve(names[name])
            return self.attribute(name) if "." in name else self.reference(name)

        return re.sub(r"\$\{([^}]+)\}", one, text)


def small(value, shape):
    """CloudFormation's names as the API's, led by the API's shape: names within a map are somebody's own."""
    if shape is not None and shape.type_name == "map":
        return {name: small(inner, shape.value) for name, inner in value.items()}
    if isinstance(value, list):
        return [small(inner, getattr(shape, "member", None)) for inner in value]
    if not isinstance(value, dict):
        return value
    result = {}
    for name, inner in value.items():
        api = RENAMED.get(name, name[0].lower() + name[1:])
        members = getattr(shape, "members", {})
        result[api] = small(inner, members.get(api))
    return result


def faults(value, shape, path):
    """What botocore's validator leaves to the service."""
    if shape.type_name == "structure":
        for name, inner in value.items():
            yield from faults(inner, shape.members[name], f"{path}.{name}")
    elif shape.type_name == "map":
        for name, inner in value.items():
            yield from faults(inner, shape.value, f"{path}.{name}")
    elif shape.type_name == "list":
        if len(value) > shape.metadata.get("max", len(value)):
            yield f"{path}: {len(value)} items"
        for n, inner in enumerate(value):
            yield from faults(inner, shape.member, f"{path}[{n}]")
    elif shape.type_name == "string":
        if shape.enum and value not in shape.enum:
            yield f"{path}: {value!r} is none of {shape.enum}"
        if len(value) > shape.metadata.get("max", len(value)):
            yield f"{path}: {len(value)} characters"
        pattern = shape.metadata.get("pattern")
        # The patterns are Java's, which `re` cannot read all of.
        if pattern and not regex.fullmatch(pattern, value):
            yield f"{path}: {value!r} does not match {pattern}"


def judge(service, operation, parameters, said=None):
    shape = SESSION.get_service_model(service).operation_model(operation).input_shape
    if said != "as it is":
        parameters = small(parameters, shape)
    report = ParamValidator().validate(parameters, shape)
    found = [report.generate_report()] if report.has_errors() else list(faults(parameters, shape, operation))
    return parameters, found


class Checks:
    def __init__(self, template):
        self.template, self.calls, self.judged, self.failures = template, 0, set(), []

    def call(self, name, service, operation, parameters, said=None):
        self.calls += 1
        self.judged.add(name)
        parameters, found = judge(service, operation, parameters, said)
        self.failures += [f"{name}: {service} {operation}: {fault}" for fault in found]
        return parameters

    def same(self, what, found, wanted):
        if found != wanted:
            self.failures.append(f"{what}: {found!r}, but {wanted!r} is needed")


def tables(checks):
    """Names, keys, index and expiry as floorgate provisions them (src/sync/dynamo/schema.rs, docs of the contract)."""
    listed = ["device_type", "status", "firmware_version"]
    wanted = {
        "iot-devices": (["device_id"], [("location-index", ["location"], "INCLUDE", listed)], None),
        "iot-telemetry-history": (["device_id", "timestamp"], [], "expires_at"),
        "iot-commands": (["device_id", "command_id"], [], "forget_at"),
    }
    found = {}
    for name, resource in checks.template.of_type("AWS::DynamoDB::Table").items():
        properties = checks.template.properties(name)
        checks.same(f"{name}: DeletionPolicy", resource.get("DeletionPolicy"), "Retain")
        ttl = properties.pop("TimeToLiveSpecification", None)
        recovery = properties.pop("PointInTimeRecoverySpecification", {})
        checks.call(name, "dynamodb", "CreateTable", properties, "as it is")
        table = properties["TableName"]
        checks.same(f"{name}: recovery", recovery, {"PointInTimeRecoveryEnabled": True})
        specification = {"TableName": table, "PointInTimeRecoverySpecification": recovery}
        checks.call(name, "dynamodb", "UpdateContinuousBackups", specification, "as it is")
        if ttl:
            checks.same(f"{name}: expiry", ttl["Enabled"], True)
            specification = {"TableName": table, "TimeToLiveSpecification": ttl}
            checks.call(name, "dynamodb", "UpdateTimeToLive", specification, "as it is")
        checks.same(f"{name}: billing", properties["BillingMode"], "PAY_PER_REQUEST")
        types = {d["AttributeName"]: d["AttributeType"] for d in properties["AttributeDefinitions"]}
        checks.same(f"{name}: types", set(types.values()), {"S"})

        def keys(schema):
            checks.same(f"{name}: kinds of keys", [k["KeyType"] for k in schema], ["HASH", "RANGE"][: len(schema)])
            return [k["AttributeName"] for k in schema]

        indexes = [
            (i["IndexName"], keys(i["KeySchema"]), i["Projection"]["ProjectionType"], i["Projection"]["NonKeyAttributes"])
            for i in properties.get("GlobalSecondaryIndexes", [])
        ]
        found[table] = (keys(properties["KeySchema"]), indexes, ttl and ttl["AttributeName"])
        used = set(found[table][0]).union(*(index[1] for index in indexes))
        checks.same(f"{name}: attributes defined", set(types), used)
    checks.same("tables", found, wanted)


def iot(checks):
    for name in checks.template.of_type("AWS::IoT::Policy"):
        properties = checks.template.properties(name)
        document = json.dumps(properties["PolicyDocument"], separators=(",", ":"))
        # What the service counts.
        if len(re.sub(r"\s", "", document)) > 2048:
            checks.failures.append(f"{name}: {len(document)} characters; a policy of AWS IoT has 2,048 at most")
        checks.call(name, "iot", "CreatePolicy", {**properties, "PolicyDocument": document})
    for name in checks.template.of_type("AWS::IoT::RoleAlias"):
        checks.call(name, "iot", "CreateRoleAlias", checks.template.properties(name))
    for name in checks.template.of_type("AWS::IoT::TopicRule"):
        checks.call(name, "iot", "CreateTopicRule", checks.template.properties(name))


def functions(checks):
    for name in checks.template.of_type("AWS::Serverless::Function"):
        properties = checks.template.properties(name)
        properties.pop("CodeUri", None) or properties.pop("InlineCode")
        checks.same(f"{name}: architecture", properties["Architectures"], ["arm64"])
        checks.call(name, "lambda", "CreateFunction", {**properties, "Code": {"ZipFile": b""}}, "as it is")
    for name in checks.template.of_type("AWS::Logs::LogGroup"):
        properties = checks.template.properties(name)
        days = {"logGroupName": properties["LogGroupName"], "retentionInDays": properties["RetentionInDays"]}
        checks.call(name, "logs", "PutRetentionPolicy", days, "as it is")
    for name in checks.template.of_type("AWS::Lambda::Permission"):
        checks.call(name, "lambda", "AddPermission", {**checks.template.properties(name), "StatementId": name}, "as it is")


def cognito(checks):
    kinds = {
        "AWS::Cognito::UserPool": "CreateUserPool",
        "AWS::Cognito::UserPoolGroup": "CreateGroup",
        "AWS::Cognito::UserPoolResourceServer": "CreateResourceServer",
        "AWS::Cognito::UserPoolClient": "CreateUserPoolClient",
        "AWS::Cognito::UserPoolDomain": "CreateUserPoolDomain",
    }
    groups = set()
    for kind, operation in kinds.items():
        for name in checks.template.of_type(kind):
            properties = checks.template.properties(name)
            groups.add(properties.get("GroupName"))
            if operation == "CreateUserPool":
                # CloudFormation sets it by another call, under the same name less a prefix.
                properties["PoolName"] = properties.pop("UserPoolName")
                mfa = {"UserPoolId": MADE["Operators"], "MfaConfiguration": properties["MfaConfiguration"]}
                checks.same(f"{name}: factors", properties.pop("EnabledMfas"), ["SOFTWARE_TOKEN_MFA"])
                mfa["SoftwareTokenMfaConfiguration"] = {"Enabled": True}
                checks.call(name, "cognito-idp", "SetUserPoolMfaConfig", mfa, "as it is")
            checks.call(name, "cognito-idp", operation, properties, "as it is")
    asked = set()
    for name in checks.template.of_type("AWS::BedrockAgentCore::Policy"):
        statement = checks.template.properties(name)["Definition"]["Cedar"]["Statement"]
        asked |= set(re.findall(r'like "\*\\"([^"\\]+)\\"\*"', statement))
    checks.same("groups that the policies ask for", asked, groups - {None})


def agentcore(checks):
    control = "bedrock-agentcore-control"
    for kind in ["PolicyEngine", "Gateway", "GatewayTarget", "Policy"]:
        for name in checks.template.of_type(f"AWS::BedrockAgentCore::{kind}"):
            checks.call(name, control, f"Create{kind}", checks.template.properties(name))
    (target,) = checks.template.of_type("AWS::BedrockAgentCore::GatewayTarget")
    properties = checks.template.properties(target)
    tools = properties["TargetConfiguration"]["Mcp"]["Lambda"]["ToolSchema"]["InlinePayload"]
    actions = {f"{properties['Name']}___{tool['Name']}" for tool in tools}
    named = set()
    for name, policy in checks.template.of_type("AWS::BedrockAgentCore::Policy").items():
        # The schema that a policy is judged by comes of the target.
        checks.same(f"{name}: DependsOn", policy.get("DependsOn"), target)
        statement = checks.template.properties(name)["Definition"]["Cedar"]["Statement"]
        named |= set(re.findall(r'AgentCore::Action::"([^"]+)"', statement))
        checks.same(f"{name}: gateway", f'AgentCore::Gateway::"{MADE["Gateway.GatewayArn"]}"' in statement, True)
    checks.same("actions that the policies name", named, actions)
    gateway = checks.template.properties("Gateway")
    # Who asks: written by an interceptor of this stack that sees the token, let through by the target, believed by the tools.
    (interceptor,) = gateway["InterceptorConfigurations"]
    function = checks.template.properties("InterceptorFunction")
    checks.same("interceptor", interceptor["Interceptor"]["Lambda"]["Arn"], checks.template.attribute("InterceptorFunction.Arn"))
    checks.same("interception", interceptor["InterceptionPoints"], ["REQUEST"])
    checks.same("headers for the interceptor", interceptor["InputConfiguration"], {"PassRequestHeaders": True})
    allowed = properties["MetadataConfiguration"]["AllowedRequestHeaders"]
    checks.same("headers for the tools", allowed, ["x-operator-id", "x-operator-name"])
    tools_function = checks.template.properties("ToolsFunction")
    checks.same("handlers", (tools_function["Handler"], function["Handler"]), ("lambda", "interceptor"))
    checks.same("operators are named", tools_function["Environment"]["Variables"]["FLOORGATE_OPERATOR_HEADERS"], "true")
    discovery = gateway["AuthorizerConfiguration"]["CustomJWTAuthorizer"]
    issuer = discovery["DiscoveryUrl"].removesuffix("/.well-known/openid-configuration")
    wanted = {"FLOORGATE_ISSUER": issuer, "FLOORGATE_CLIENT_IDS": discovery["AllowedClients"][0]}
    checks.same("whose tokens count", function["Environment"]["Variables"], wanted)
    checks.same("policy engine", gateway["PolicyEngineConfiguration"]["Mode"], "ENFORCE")
    # The checks can find something: a word that AgentCore's schemas do not have, and a name that is none.
    tools[0]["InputSchema"]["Enum"] = ["x"]
    checks.same("an enum in a tool's schema is found", len(judge(control, "CreateGatewayTarget", properties)[1]), 1)
    checks.same("a wrong name is found", len(judge(control, "CreateGateway", {**gateway, "Name": "a_b"})[1]), 1)


def roles(checks):
    """What each role may do: these actions and no others, on nothing that is not named."""
    read = {"dynamodb:GetItem", "dynamodb:Query", "dynamodb:Scan"}
    log = {"logs:CreateLogStream", "logs:PutLogEvents"}
    wanted = {
        "GatewayTablesRole": {"dynamodb:DescribeTable", "dynamodb:GetItem", "dynamodb:UpdateItem", "dynamodb:BatchWriteItem"},
        "InterceptorRole": log,
        "PresenceRole": {"dynamodb:UpdateItem"} | log,
        "ToolsRole": read | {"dynamodb:BatchGetItem", "dynamodb:PutItem", "dynamodb:UpdateItem", "iot:Publish"} | log,
        "GatewayRole": {
            "lambda:InvokeFunction",
            "bedrock-agentcore:GetPolicyEngine",
            "bedrock-agentcore:AuthorizeAction",
            "bedrock-agentcore:PartiallyAuthorizeActions",
        },
    }
    owned = {p["TableName"] for p in map(checks.template.properties, checks.template.of_type("AWS::DynamoDB::Table"))}
    found = {}
    for name in checks.template.of_type("AWS::IAM::Role"):
        properties = checks.template.properties(name)
        checks.same(f"{name}: AWS's own policies", properties.get("ManagedPolicyArns"), None)
        trust = json.dumps(properties["AssumeRolePolicyDocument"])
        checks.call(name, "iam", "CreateRole", {"RoleName": name, "AssumeRolePolicyDocument": trust}, "as it is")
        found[name] = set()
        for policy in properties["Policies"]:
            document = json.dumps(policy["PolicyDocument"])
            put = {"RoleName": name, "PolicyName": policy["PolicyName"], "PolicyDocument": document}
            checks.call(name, "iam", "PutRolePolicy", put, "as it is")
            for statement in policy["PolicyDocument"]["Statement"]:
                action, resource = statement["Action"], statement["Resource"]
                found[name] |= {action} if isinstance(action, str) else set(action)
                for arn in [resource] if isinstance(resource, str) else resource:
                    table = re.search(r":table/([^/]+)", arn)
                    if not arn.startswith("arn:aws:") or (table and table.group(1) not in owned):
                        checks.failures.append(f"{name}: {arn} is none of this stack's")
    checks.same("what the roles may do", found, wanted)


def presence(checks):
    """Runs the function: an item changes only for a newer event, and only that of a gateway."""
    import boto3
    from moto import mock_aws

    properties = checks.template.properties("PresenceFunction")
    os.environ.update(properties["Environment"]["Variables"])
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": REGION}
    os.environ.update(keys)
    with mock_aws():
        table = {"TableName": "iot-devices", "BillingMode": "PAY_PER_REQUEST"}
        table["KeySchema"] = [{"AttributeName": "device_id", "KeyType": "HASH"}]
        table["AttributeDefinitions"] = [{"AttributeName": "device_id", "AttributeType": "S"}]
        dynamodb = boto3.client("dynamodb")
        dynamodb.create_table(**table)
        for device, kind in [("GW-1", "edge_gateway"), ("VALVE-1", "valve")]:
            item = {"device_id": {"S": device}, "device_type": {"S": kind}, "status": {"S": "online"}}
            dynamodb.put_item(TableName="iot-devices", Item=item)
        code = {}
        exec(compile(properties["InlineCode"], "InlineCode", "exec"), code)

        def event(client, kind, at, version):
            return code["handler"](
                {"clientId": client, "eventType": kind, "timestamp": at, "versionNumber": version, "disconnectReason": "X"},
                None,
            )

        def item(device):
            return dynamodb.get_item(TableName="iot-devices", Key={"device_id": {"S": device}}).get("Item")

        t, hour = 1_700_000_000_000, 3_600_000
        story = [
            ("the first", event("GW-1", "connected", t, 5), True),
            ("the same again", event("GW-1", "connected", t, 5), False),
            ("its end, by a clock that is behind", event("GW-1", "disconnected", t - 100_000, 5), True),
            ("its beginning, late", event("GW-1", "connected", t, 5), False),
            ("the next connection, at the same moment", event("GW-1", "connected", t, 6), True),
            ("the end of the one before, which it took the place of", event("GW-1", "disconnected", t + 5, 5), False),
            ("the one after, of which a version was skipped", event("GW-1", "connected", t + 9, 8), True),
            ("its end", event("GW-1", "disconnected", t + 10, 8), True),
            ("after a long absence AWS counts anew", event("GW-1", "connected", t + 2 * hour, 0), True),
            ("something from before the absence", event("GW-1", "disconnected", t + 10, 9), False),
            ("a device that is no gateway", event("VALVE-1", "connected", t, 1), False),
            ("a client without an item", event("GW-1-2", "connected", t, 1), False),
        ]
        for what, found, wanted in story:
            checks.same(f"presence: {what}", found, wanted)
        entry = {"connected": {"BOOL": True}, "at_ms": {"N": str(t + 2 * hour)}, "version": {"N": "0"}, "reason": {"S": "X"}}
        wanted = {"device_id", "device_type", "status", "presence"}
        checks.same("presence: the item", (set(item("GW-1")), item("GW-1")["presence"]["M"]), (wanted, entry))
        checks.same("presence: others", ("presence" in item("VALVE-1"), item("GW-1-2")), (False, None))


def main():
    checks = Checks(Template(sys.argv[1]))
    for part in [tables, iot, functions, cognito, agentcore, roles, presence]:
        part(checks)
    checks.same("resources that nothing judged", set(checks.template.body["Resources"]) - checks.judged, set())
    for failure in checks.failures:
        print(failure, file=sys.stderr)
    print(f"{checks.calls} calls for {len(checks.judged)} resources judged by AWS's models: {len(checks.failures)} faults")
    sys.exit(1 if checks.failures else 0)


if __name__ == "__main__":
    main()
