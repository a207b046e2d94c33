//! The shared credentials file: `[profile]` sections with `aws_access_key_id` and its companions.

use std::collections::BTreeMap;
use std::path::Path;

use super::{CredentialsError, Keys};

/// Largest file that is read, bytes; a credentials file has some hundred.
const FILE_MAX: u64 = 256 * 1024;

/// Reads one profile. The file is small and local, so this does not leave the calling thread.
pub(super) fn read(path: &Path, profile: &str) -> Result<Keys, CredentialsError> {
    let wrong = |what: String| CredentialsError::File { path: path.display().to_string(), what };
    let size = std::fs::metadata(path).map(|data| data.len());
    let size = size.map_err(|cause| {
        wrong(format!(
            "cannot be read: {cause}; set AWS_ACCESS_KEY_ID, or name the file in AWS_SHARED_CREDENTIALS_FILE"
        ))
    })?;
    if size > FILE_MAX {
        return Err(wrong(format!("has {size} bytes, at most {FILE_MAX} are read")));
    }
    let content = std::fs::read_to_string(path).map_err(|cause| wrong(format!("cannot be read: {cause}")))?;
    parse(&content, profile).map_err(wrong)
}

fn parse(content: &str, profile: &str) -> Result<Keys, String> {
    let mut sections: Vec<&str> = Vec::new();
    let mut values: BTreeMap<String, &str> = BTreeMap::new();
    let mut inside = false;
    for line in content.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            let name = name.trim();
            inside = name == profile;
            sections.push(name);
        } else if inside && let Some((name, value)) = line.split_once('=') {
            values.insert(name.trim().to_ascii_lowercase(), value.trim());
        }
    }
    if !sections.contains(&profile) {
        let there = if sections.is_empty() { "none".to_owned() } else { sections.join(", ") };
        return Err(format!("has no profile `{profile}` (there: {there}); add it, or choose one with AWS_PROFILE"));
    }
    let needed = |name: &str| match values.get(name) {
        Some(value) if !value.is_empty() => Ok((*value).to_owned()),
        _ => {
            Err(format!("profile `{profile}` has no `{name}`; floorgate reads fixed keys alone, no roles or processes"))
        }
    };
    Ok(Keys {
        access_key_id: needed("aws_access_key_id")?,
        secret_access_key: needed("aws_secret_access_key")?,
        session_token: values.get("aws_session_token").filter(|token| !token.is_empty()).map(|t| (*t).to_owned()),
        life: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# ours\n[default]\naws_access_key_id = AKIDEFAULT\naws_secret_access_key=a=b+c/d==\n\
                        ; old\n[ floor ]\nAWS_ACCESS_KEY_ID=AKIFLOOR\naws_secret_access_key = s\naws_session_token = t\n\
                        [role]\nrole_arn = arn:aws:iam::1:role/x\n";

    #[test]
    fn each_profile_gives_its_own_keys() {
        let keys = parse(FILE, "default").ok().unwrap();
        assert_eq!((keys.access_key_id.as_str(), keys.secret_access_key.as_str()), ("AKIDEFAULT", "a=b+c/d=="));
        assert_eq!(keys.session_token, None);
        let keys = parse(FILE, "floor").ok().unwrap();
        assert_eq!((keys.access_key_id.as_str(), keys.session_token.as_deref()), ("AKIFLOOR", Some("t")));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(
            parse(FILE, "prod").err().unwrap(),
            "has no profile `prod` (there: default, floor, role); add it, or choose one with AWS_PROFILE"
        );
        assert!(parse(FILE, "role").err().unwrap().contains("no `aws_access_key_id`"));
        assert!(parse("", "default").err().unwrap().contains("(there: none)"));
        let error = read(Path::new("/nonexistent/credentials"), "default").err().unwrap().to_string();
        assert!(error.contains("/nonexistent/credentials") && error.contains("AWS_ACCESS_KEY_ID"), "{error}");
    }
}
