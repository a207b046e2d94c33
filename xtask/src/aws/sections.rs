//! The generated sections of the template: what stands between `# generated: NAME` and `# end of NAME`, as deep as the
//! marks. JSON is YAML, so what comes from JSON stays JSON.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// Columns of a line, its indentation included; longer JSON is broken.
const WIDTH: usize = 120;
/// Where `docs/operations.md` gives the policies: a heading, and which of the JSON blocks after it.
const DOCUMENTS: [(&str, &str, usize); 3] = [
    ("gateway-certificate", "**Policy of the certificate**", 0),
    ("gateway-trust", "**Role behind the role alias**", 0),
    ("gateway-tables", "**Role behind the role alias**", 1),
];

/// One section, and what its source says.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) name: &'static str,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Json(Value),
    Lines(String),
}

/// The policies: of files, so that a test may compare them without building the tools.
///
/// # Errors
/// If a source cannot be read, or holds no such policy.
pub(super) fn of_files(root: &Path) -> Result<Vec<Section>> {
    let operations = read(&root.join("docs/operations.md"))?;
    let mut sections = Vec::new();
    for (name, heading, which) in DOCUMENTS {
        let document = json_block(&operations, heading, which)?;
        sections.push(Section { name, content: Content::Json(substituted(&document)) });
    }
    sections.push(Section { name: "cedar", content: Content::Lines(cedar(&root.join("fleet/policies"))?) });
    Ok(sections)
}

/// The tools, as a target's `InlinePayload`.
pub(super) fn of_tools(tools: &Value) -> Section {
    let tools = tools.as_array().map(|tools| tools.iter().map(|tool| capitalized(tool, true)).collect());
    Section { name: "tools", content: Content::Json(tools.unwrap_or_default()) }
}

impl Section {
    /// The template with this section renewed.
    ///
    /// # Errors
    /// If the template has no such marks.
    pub(super) fn put_into(&self, template: &str) -> Result<String> {
        let (before, rest) = template
            .split_once(&format!("# generated: {}", self.name))
            .with_context(|| format!("the template has no `# generated: {}`", self.name))?;
        let (mark, rest) = rest.split_once('\n').unwrap_or((rest, ""));
        let end = format!("# end of {}\n", self.name);
        let (_, after) = rest.split_once(&end).with_context(|| format!("the template has no `{}`", end.trim_end()))?;
        let depth = before.chars().rev().take_while(|c| *c == ' ').count();
        let indent = " ".repeat(depth);
        let lines = match &self.content {
            Content::Json(value) => json_lines(value, depth),
            Content::Lines(lines) => lines.clone(),
        };
        let mut renewed = format!("{before}# generated: {}{mark}\n", self.name);
        for line in lines.lines() {
            // Nothing after the end of an empty line.
            let _ = writeln!(renewed, "{}", format!("{indent}{line}").trim_end());
        }
        let _ = write!(renewed, "{indent}{end}{after}");
        Ok(renewed)
    }

    /// Whether the template has it as its source says.
    pub(super) fn stands_in(&self, template: &str) -> bool {
        self.put_into(template).is_ok_and(|renewed| renewed == template)
    }
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn json_block(text: &str, heading: &str, which: usize) -> Result<Value> {
    let (_, after) = text.split_once(heading).with_context(|| format!("docs/operations.md has no {heading}"))?;
    let block = after.split("```json\n").nth(which + 1).and_then(|rest| rest.split("```").next());
    let block = block.with_context(|| format!("docs/operations.md has no JSON block {which} after {heading}"))?;
    serde_json::from_str(block).with_context(|| format!("JSON block {which} after {heading}"))
}

/// A document with `REGION` and `ACCOUNT` as CloudFormation's own words, and AWS IoT's variables left to AWS IoT.
fn substituted(value: &Value) -> Value {
    match value {
        Value::String(text) if text.starts_with("arn:") => {
            let text = text.replace("${", "${!").replace("arn:aws:", "arn:${AWS::Partition}:");
            let text = text.replace("REGION", "${AWS::Region}").replace("ACCOUNT", "${AWS::AccountId}");
            json!({ "Fn::Sub": text })
        }
        Value::Array(items) => items.iter().map(substituted).collect(),
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), substituted(value))).collect(),
        other => other.clone(),
    }
}

/// The API's names as CloudFormation writes them; the names of a tool's own arguments stay (`ours` false).
fn capitalized(value: &Value, ours: bool) -> Value {
    let Value::Object(members) = value else { return value.clone() };
    let renamed = members.iter().map(|(name, value)| {
        let value = capitalized(value, !(ours && name == "properties"));
        let mut letters = name.chars();
        match letters.next() {
            Some(first) if ours => (first.to_ascii_uppercase().to_string() + letters.as_str(), value),
            _ => (name.clone(), value),
        }
    });
    Value::Object(renamed.collect::<Map<_, _>>())
}

/// One resource for each policy file.
fn cedar(folder: &Path) -> Result<String> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<_> = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "cedar"));
    files.sort();
    let mut lines = String::new();
    for file in &files {
        let name = file.file_stem().and_then(|name| name.to_str()).context("a policy's file name is no text")?;
        let text = read(file)?;
        if text.replace("${GatewayArn}", "").contains("${") {
            bail!("{} has a variable other than ${{GatewayArn}}", file.display());
        }
        if !lines.is_empty() {
            lines.push('\n');
        }
        let resource: String = name.split('_').map(capital).collect();
        let _ = write!(
            lines,
            "Policy{resource}:\n  Type: AWS::BedrockAgentCore::Policy\n  # Judged against the tools' schema, so the tools come first.\n  \
             DependsOn: Target\n  Properties:\n    Name: {name}\n    PolicyEngineId: !GetAtt PolicyEngine.PolicyEngineId\n    \
             ValidationMode: FAIL_ON_ANY_FINDINGS\n    Definition:\n      Cedar:\n        Statement:\n          Fn::Sub:\n            - |\n"
        );
        for line in text.lines() {
            let _ = writeln!(lines, "              {line}");
        }
        lines.push_str("            - GatewayArn: !GetAtt Gateway.GatewayArn\n");
    }
    Ok(lines)
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

/// JSON in lines of at most [`WIDTH`] where texts allow it, sorted by name: the same whatever built it.
fn json_lines(value: &Value, depth: usize) -> String {
    let inline = one_line(value);
    if depth + inline.len() < WIDTH {
        return inline;
    }
    let indent = "  ";
    let mut lines = String::new();
    let nested = |text: &str| text.replace('\n', &format!("\n{indent}"));
    let (open, close, members): (_, _, Vec<String>) = match value {
        Value::Array(items) => {
            ("[", "]", items.iter().map(|item| nested(&json_lines(item, depth + indent.len()))).collect())
        }
        Value::Object(object) => {
            let member = |(name, value): (&String, &Value)| {
                let name = Value::from(name.as_str()).to_string();
                let value = json_lines(value, depth + indent.len() + name.len() + 2);
                format!("{name}: {}", nested(&value))
            };
            ("{", "}", sorted(object).map(member).collect())
        }
        _ => return inline,
    };
    let _ = write!(lines, "{open}\n{indent}{}\n{close}", members.join(&format!(",\n{indent}")));
    lines
}

fn one_line(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(one_line).collect::<Vec<_>>().join(", ")),
        Value::Object(object) => {
            let member =
                |(name, value): (&String, &Value)| format!("{}: {}", Value::from(name.as_str()), one_line(value));
            format!("{{ {} }}", sorted(object).map(member).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

fn sorted(object: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    let mut members: Vec<_> = object.iter().collect();
    members.sort_by_key(|(name, _)| *name);
    members.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::root;

    #[test]
    fn the_templates_policies_are_those_of_the_documents_and_of_the_cedar_files() {
        let template = read(&root().join("deploy/aws/template.yaml")).unwrap();
        let sections = of_files(&root()).unwrap();
        assert_eq!(sections.len(), DOCUMENTS.len() + 1);
        for section in sections {
            assert!(section.stands_in(&template), "{} differs; run `cargo xtask aws --write`", section.name);
        }
    }

    #[test]
    fn a_section_that_says_something_else_is_found_and_renewed() {
        let section =
            of_tools(&json!([{ "name": "a", "inputSchema": { "properties": { "type": { "type": "string" } } } }]));
        let stale = "x:\n  # generated: tools, by hand\n  []\n  # end of tools\ny: 1\n";
        assert!(!section.stands_in(stale));
        let renewed = section.put_into(stale).unwrap();
        assert!(section.stands_in(&renewed), "{renewed}");
        // An argument called `type` keeps its name.
        assert_eq!(
            renewed,
            "x:\n  # generated: tools, by hand\n  [{ \"InputSchema\": { \"Properties\": { \"type\": { \"Type\": \"string\" } } }, \
             \"Name\": \"a\" }]\n  # end of tools\ny: 1\n"
        );
        assert!(section.put_into("x: 1\n").is_err());
    }

    #[test]
    fn variables_of_aws_iot_are_not_taken_for_cloudformations() {
        let document = json!({ "Resource": ["arn:aws:iot:REGION:ACCOUNT:client/${iot:Connection.Thing.ThingName}"] });
        let text =
            "arn:${AWS::Partition}:iot:${AWS::Region}:${AWS::AccountId}:client/${!iot:Connection.Thing.ThingName}";
        assert_eq!(substituted(&document), json!({ "Resource": [{ "Fn::Sub": text }] }));
    }

    #[test]
    fn json_is_broken_only_where_it_is_too_long() {
        let long = "x".repeat(WIDTH);
        let lines = json_lines(&json!({ "b": [1, 2], "a": { "c": long } }), 4);
        assert_eq!(lines, format!("{{\n  \"a\": {{\n    \"c\": \"{long}\"\n  }},\n  \"b\": [1, 2]\n}}"));
        assert_eq!(serde_json::from_str::<Value>(&lines).unwrap(), json!({ "a": { "c": long }, "b": [1, 2] }));
    }
}
