//! Who may do what: Cedar policies in AgentCore's model, the same files here and in AWS.
//!
//! # The model
//!
//! | | |
//! |---|---|
//! | principal | `AgentCore::OAuthUser::"<sub>"`, attribute `id`, one string tag per claim of its token |
//! | action | `AgentCore::Action::"IoTDeviceTools___<tool>"`, in `CallTool`, in `Mcp` |
//! | resource | `AgentCore::Gateway::"<arn>"`; `${GatewayArn}` in a file stands for it |
//! | context | `context.input.<argument>` as the tool's input schema declares it, `context.system.now` |
//!
//! The schema is generated from the tools' definitions by the generator that AgentCore's authors publish ([`schema`]), from
//! the five keywords that AgentCore takes (`type`, `properties`, `required`, `items`, `description`), so an enumeration is a
//! plain string in both places. Arguments become Cedar values by that schema ([`request`]); members that it does not declare
//! are invisible to policies, as they are in AWS.
//!
//! # What is guaranteed
//!
//! * Nothing is permitted that no policy permits; one `forbid` beats every `permit`; a policy that cannot be evaluated
//!   (a tag that is missing) permits nothing.
//! * A file that does not parse, does not fit the schema, can never match, or that AgentCore would refuse (size, name, more than
//!   one statement, a resource that is not the gateway) stops the start, with file, line and reason; all faults at once.
//! * [`Policies::could`] is `false` only if no arguments whatever could be permitted: `tools/list` hides nothing that a call
//!   would get.
//! * *Status first*: [`StatusReads`] remembers who read which device's status when; `send_command` needs such a read within
//!   [`STATUS_FIRST_WITHIN`]. Cedar has no memory, so this one rule is code here, and Dogwood in AWS.
//!
//! # What it does not do
//!
//! It does not check scopes (the door does) nor what a device can do (the tools and the gateway do).

mod files;
mod normal;
mod request;
mod schema;
mod status_reads;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use cedar_policy::{
    Authorizer, Decision, Entities, Entity, EntityUid, PolicySet, RequestBuilder, RestrictedExpression, Schema,
};
use serde_json::{Map, Value};

pub use self::files::{Fault, PolicyFile, embedded, read_folder};
pub use self::normal::normal;
pub use self::request::Misfit;
pub use self::status_reads::{STATUS_FIRST_WITHIN, StatusReads};
use crate::identity::Operator;
use crate::tools::{Tool, agentcore_schema};

/// AgentCore puts the target's name before the tool's, with three underscores between.
pub const TARGET: &str = "IoTDeviceTools";

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may be made.
    Permitted,
    /// It may not; the text is AgentCore's.
    Denied(String),
}

/// Validated policies for a fixed set of tools.
#[derive(Debug)]
pub struct Policies {
    authorizer: Authorizer,
    policies: PolicySet,
    schema: Schema,
    schema_text: String,
    gateway: EntityUid,
    tools: BTreeMap<String, (EntityUid, Value)>,
}

impl Policies {
    /// Reads and validates policies for these tools; `gateway_arn` takes the place of `${GatewayArn}`.
    ///
    /// # Errors
    /// Every [`Fault`] of every file.
    pub fn load(files: &[PolicyFile], tools: &[Tool], gateway_arn: &str) -> Result<Self, Vec<Fault>> {
        let own = |reason: String| vec![Fault { file: "the tools' schema".to_owned(), line: None, reason }];
        let (schema_text, schema) = schema::generate(tools).map_err(own)?;
        let gateway = schema::entity("Gateway", gateway_arn).map_err(own)?;
        let policies = files::parse(files, &schema, &gateway, gateway_arn)?;
        let shape = |tool: &Tool| {
            let action = schema::entity("Action", &schema::action_name(tool.name))?;
            Ok((tool.name.to_owned(), (action, agentcore_schema(&tool.input_schema))))
        };
        let tools = tools.iter().map(shape).collect::<Result<_, _>>().map_err(own)?;
        Ok(Self { authorizer: Authorizer::new(), policies, schema, schema_text, gateway, tools })
    }

    /// The generated schema in Cedar's own notation, for people and for the AWS template.
    pub fn schema_text(&self) -> &str {
        &self.schema_text
    }

    /// Whether this operator may call this tool with these arguments at `now` (RFC 3339, UTC, milliseconds).
    ///
    /// # Errors
    /// A [`Misfit`]: the arguments are not of the types that the tool declares, so there is nothing to judge.
    pub fn decide(
        &self,
        operator: &Operator,
        tool: &str,
        arguments: &Map<String, Value>,
        now: &str,
    ) -> Result<Verdict, Misfit> {
        let Some((action, shape)) = self.tools.get(tool) else { return Ok(denied(&[])) };
        let context = request::context(shape, arguments, now)?;
        let Some((principal, entities)) = self.principal(operator) else { return Ok(denied(&[])) };
        let request =
            cedar_policy::Request::new(principal, action.clone(), self.gateway.clone(), context, Some(&self.schema));
        let request = request.map_err(|error| Misfit::new("arguments", &error.to_string()))?;
        let response = self.authorizer.is_authorized(&request, &self.policies, &entities);
        for error in response.diagnostics().errors() {
            tracing::debug!(%error, tool, "a policy could not be evaluated");
        }
        let reasons: Vec<String> = response.diagnostics().reason().map(ToString::to_string).collect();
        Ok(match response.decision() {
            Decision::Allow => Verdict::Permitted,
            Decision::Deny => denied(&reasons),
        })
    }

    /// Whether some arguments exist with which this operator might call this tool.
    pub fn could(&self, operator: &Operator, tool: &str) -> bool {
        let Some((action, _)) = self.tools.get(tool) else { return false };
        let Some((principal, entities)) = self.principal(operator) else { return false };
        let request = RequestBuilder::default().principal(principal).action(action.clone());
        let request = request.resource(self.gateway.clone()).schema(&self.schema).build();
        let Ok(request) = request else { return false };
        let response = self.authorizer.is_authorized_partial(&request, &self.policies, &entities);
        response.decision() != Some(Decision::Deny)
    }

    fn principal(&self, operator: &Operator) -> Option<(EntityUid, Entities)> {
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        let uid = schema::entity("OAuthUser", &operator.caller.subject).ok()?;
        let attributes = [("id".to_owned(), text(&operator.caller.subject))];
        let tags = operator.tags.iter().map(|(name, value)| (name.clone(), text(value)));
        let user = Entity::new_with_tags(uid.clone(), attributes, [], tags).ok()?;
        let entities = Entities::from_entities([user], Some(&self.schema)).ok()?;
        Some((uid, entities))
    }
}

/// AgentCore's words. Where a `forbid` decided it names the policy; that form is from its pages and was not seen in a reply.
fn denied(policies: &[String]) -> Verdict {
    let why = if policies.is_empty() {
        "No policy applies to the request (denied by default).".to_owned()
    } else {
        format!("Policy evaluation denied due to {}.", policies.join(", "))
    };
    Verdict::Denied(denial(&why))
}

/// The text of a denial for want of a status read before the command.
pub fn status_first_denial() -> String {
    let minutes = STATUS_FIRST_WITHIN.as_secs() / 60;
    denial(&format!("No get_device_status of this device within the last {minutes} minutes; read it first."))
}

/// The text of a denial, as AgentCore's gateway puts it.
pub fn denial(why: &str) -> String {
    format!("AuthorizeActionException - Tool Execution Denied: Tool call not allowed due to policy enforcement [{why}]")
}
