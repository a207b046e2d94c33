//! [`Fleet`]: does what a tool says, for a caller.

use serde_json::{Map, Value};

use crate::caller::Caller;
use crate::error::{ToolError, code};
use crate::tools;

/// The tools at work. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Fleet {}

impl Fleet {
    /// Does what a tool says; the answer fits the tool's `output_schema`. Cancel safe: a command whose call is dropped
    /// has been sent or not, and `get_command_status` tells.
    ///
    /// # Errors
    /// [`ToolError`], also for a name that is no tool and for arguments that do not fit.
    pub async fn call(&self, caller: &Caller, tool: &str, arguments: Map<String, Value>) -> Result<Value, ToolError> {
        let _ = (caller, arguments);
        if tools::find(tool).is_none() {
            return Err(ToolError::new(code::UNKNOWN_TOOL, "no such tool"));
        }
        Err(ToolError::new(code::INTERNAL, "not built yet"))
    }
}
