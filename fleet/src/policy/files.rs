//! Policy files: one statement each, as AgentCore's `CreatePolicy` takes them, validated against the tools' schema.

use std::fmt;
use std::path::Path;

use cedar_policy::{EntityUid, Policy, PolicyId, PolicySet, ResourceConstraint, Schema, ValidationMode, Validator};
use miette::Diagnostic;

/// AgentCore: shortest and longest statement, bytes.
const STATEMENT_BYTES: std::ops::RangeInclusive<usize> = 35..=10_000;
/// AgentCore: policies of an engine.
pub(crate) const POLICIES_MAX: usize = 1_000;
/// AgentCore: longest name of a policy.
const NAME_MAX: usize = 48;
/// What a file has in the place of the gateway's ARN.
const PLACEHOLDER: &str = "${GatewayArn}";

/// One policy as it lies on disk.
#[derive(Debug, Clone)]
pub struct PolicyFile {
    /// Its name: the file's, without `.cedar`.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Why a policy cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which file.
    pub file: String,
    /// Which line, from 1, where one can be named.
    pub line: Option<usize>,
    /// What is wrong there.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}, line {line}: {}", self.file, self.reason),
            None => write!(f, "{}: {}", self.file, self.reason),
        }
    }
}

/// The policies that floorgate comes with (`fleet/policies/`).
pub fn embedded() -> Vec<PolicyFile> {
    let file = |name: &str, text: &str| PolicyFile { name: name.to_owned(), text: text.to_owned() };
    vec![
        file("operators_read", include_str!("../../policies/operators_read.cedar")),
        file("operators_command", include_str!("../../policies/operators_command.cedar")),
        file("seniors_command", include_str!("../../policies/seniors_command.cedar")),
    ]
}

/// All `*.cedar` of a folder, by name.
///
/// # Errors
/// If the folder or a file cannot be read, or there is no policy in it: that would be a server that permits nothing.
pub fn read_folder(folder: &Path) -> Result<Vec<PolicyFile>, Vec<Fault>> {
    let fault = |path: &Path, reason: String| vec![Fault { file: path.display().to_string(), line: None, reason }];
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| fault(folder, error.to_string()))? {
        let path = entry.map_err(|error| fault(folder, error.to_string()))?.path();
        if path.extension().is_none_or(|extension| extension != "cedar") {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(|error| fault(&path, error.to_string()))?;
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        files.push(PolicyFile { name, text });
    }
    if files.is_empty() {
        return Err(fault(folder, "there is no *.cedar file in it".to_owned()));
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// All files as one validated set, or everything that is wrong with any of them.
pub(super) fn parse(
    files: &[PolicyFile],
    schema: &Schema,
    gateway: &EntityUid,
    gateway_arn: &str,
) -> Result<PolicySet, Vec<Fault>> {
    let validator = Validator::new(schema.clone());
    let mut whole = PolicySet::new();
    let mut faults = Vec::new();
    for file in files.iter().take(POLICIES_MAX) {
        match one(file, &validator, gateway, gateway_arn) {
            Ok(policy) => {
                if let Err(error) = whole.add(policy) {
                    faults.push(Fault { file: shown(file), line: None, reason: error.to_string() });
                }
            }
            Err(found) => faults.extend(found),
        }
    }
    if files.len() > POLICIES_MAX {
        let reason = format!("there are {} policies; at most {POLICIES_MAX} are taken", files.len());
        faults.push(Fault { file: "policies".to_owned(), line: None, reason });
    }
    if faults.is_empty() { Ok(whole) } else { Err(faults) }
}

fn shown(file: &PolicyFile) -> String {
    format!("{}.cedar", file.name)
}

fn one(file: &PolicyFile, validator: &Validator, gateway: &EntityUid, arn: &str) -> Result<Policy, Vec<Fault>> {
    let fault = |line: Option<usize>, reason: String| Fault { file: shown(file), line, reason };
    // An ARN has no line break, so lines stay where they are.
    let text = file.text.replace(PLACEHOLDER, arn);
    let mut wrong = Vec::new();
    let named = file.name.starts_with(|c: char| c.is_ascii_alphabetic())
        && file.name.len() <= NAME_MAX
        && file.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !named {
        wrong.push(fault(None, format!("a policy's name is a letter, then letters, digits and _, at most {NAME_MAX}")));
    }
    if !STATEMENT_BYTES.contains(&text.len()) {
        let (from, to) = (STATEMENT_BYTES.start(), STATEMENT_BYTES.end());
        wrong.push(fault(None, format!("is {} bytes; a statement has {from} to {to}", text.len())));
    }
    let set: PolicySet = match text.parse() {
        Ok(set) => set,
        Err(error) => {
            let error: cedar_policy::ParseErrors = error;
            wrong.extend(error.iter().map(|error| fault(line_of(error, &text), said(error))));
            return Err(wrong);
        }
    };
    let result = validator.validate(&set, ValidationMode::Strict);
    wrong.extend(result.validation_errors().map(|error| fault(line_of(error, &text), said(error))));
    wrong.extend(result.validation_warnings().map(|warning| fault(line_of(warning, &text), said(warning))));
    let mut policies = set.policies();
    let (Some(policy), None, 0) = (policies.next(), policies.next(), set.templates().count()) else {
        wrong.push(fault(None, "a file holds one statement, no more and no template".to_owned()));
        return Err(wrong);
    };
    let ours = match policy.resource_constraint() {
        ResourceConstraint::Eq(resource) => resource == *gateway,
        ResourceConstraint::Is(_) => true,
        _ => false,
    };
    if !ours {
        let wanted = format!("the resource must be == AgentCore::Gateway::\"{PLACEHOLDER}\" or is AgentCore::Gateway");
        wrong.push(fault(None, wanted));
    }
    if wrong.is_empty() { Ok(policy.new_id(PolicyId::new(&file.name))) } else { Err(wrong) }
}

/// What a diagnostic says, with its advice, on one line.
fn said(diagnostic: &dyn Diagnostic) -> String {
    let help = diagnostic.help().map(|help| format!(" ({help})")).unwrap_or_default();
    format!("{diagnostic}{help}").replace('\n', " ")
}

/// The line at which a diagnostic points.
fn line_of(diagnostic: &dyn Diagnostic, text: &str) -> Option<usize> {
    let offset = diagnostic.labels()?.next()?.offset();
    let before = text.get(..offset.min(text.len()))?;
    Some(before.matches('\n').count() + 1)
}
