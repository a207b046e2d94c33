//! Update expressions, always with placeholders: `status`, `location`, `timestamp` and `parameters` are reserved words.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use crate::sync::item::Item;

/// One `UpdateItem` being put together.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Update {
    set: Vec<String>,
    remove: Vec<String>,
    condition: String,
    names: HashMap<String, String>,
    values: Item,
    written: Item,
}

impl Update {
    /// The placeholder of an attribute.
    pub(super) fn name(&mut self, attribute: &str) -> String {
        let placeholder = format!("#{attribute}");
        self.names.insert(placeholder.clone(), attribute.to_owned());
        placeholder
    }

    /// The placeholder of a value.
    pub(super) fn value(&mut self, name: &str, value: AttributeValue) -> String {
        let placeholder = format!(":{name}");
        self.values.insert(placeholder.clone(), value);
        placeholder
    }

    /// Sets a top-level attribute.
    pub(super) fn set(&mut self, attribute: &str, value: AttributeValue) {
        self.written.insert(attribute.to_owned(), value.clone());
        let (name, value) = (self.name(attribute), self.value(attribute, value));
        self.set.push(format!("{name} = {value}"));
    }

    /// Sets a member of a map that exists.
    pub(super) fn set_member(&mut self, map: &str, member: &str, value: AttributeValue) {
        let (outer, inner, value) = (self.name(map), self.name(member), self.value(member, value));
        self.set.push(format!("{outer}.{inner} = {value}"));
    }

    /// Sets an attribute unless it has a value.
    pub(super) fn set_once(&mut self, attribute: &str, value: AttributeValue) {
        let (name, value) = (self.name(attribute), self.value(attribute, value));
        self.set.push(format!("{name} = if_not_exists({name}, {value})"));
    }

    /// Removes an attribute.
    pub(super) fn remove(&mut self, attribute: &str) {
        let name = self.name(attribute);
        self.remove.push(name);
    }

    /// Removes a member of a map that exists, whatever the member's name holds.
    pub(super) fn remove_member(&mut self, map: &str, placeholder: &str, member: &str) -> String {
        let outer = self.name(map);
        self.names.insert(format!("#{placeholder}"), member.to_owned());
        let path = format!("{outer}.#{placeholder}");
        self.remove.push(path.clone());
        path
    }

    /// Under which condition.
    pub(super) fn only_if(&mut self, condition: String) {
        self.condition = condition;
    }

    /// Whether an item has everything this update sets for good.
    pub(super) fn is_in(&self, item: &Item) -> bool {
        self.written.iter().all(|(attribute, value)| item.get(attribute) == Some(value))
    }

    /// Update expression, condition, names, values.
    pub(super) fn parts(self) -> (String, String, HashMap<String, String>, Item) {
        let clauses = [("SET", self.set), ("REMOVE", self.remove)];
        let clauses = clauses.into_iter().filter(|(_, paths)| !paths.is_empty());
        let expression: Vec<_> = clauses.map(|(clause, paths)| format!("{clause} {}", paths.join(", "))).collect();
        (expression.join(" "), self.condition, self.names, self.values)
    }
}
