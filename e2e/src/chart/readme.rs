//! The chart's README: what stands before its table of values is written by hand, the table is made of the comments in
//! values.yaml. A value without a comment is an error.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Where the table begins.
const HEADING: &str = "\n## Values\n";

/// A README with the table of these values in place of the one that it has.
///
/// # Errors
/// When it has no place for one, or a value has no comment.
pub fn with_table(readme: &str, values: &str) -> Result<String> {
    let (head, _) = readme.split_once(HEADING).context("the README has no section Values")?;
    Ok(format!("{head}{HEADING}\n{}", table(values)?))
}

fn table(text: &str) -> Result<String> {
    let values: Value = serde_saphyr::from_str(text)?;
    let mut table = "| value | default | what |\n|---|---|---|\n".to_owned();
    let (mut comment, mut path): (Vec<&str>, Vec<(usize, &str)>) = (Vec::new(), Vec::new());
    // How deep a value is whose comment is also that of all below it.
    let mut covered: Option<usize> = None;
    for line in text.lines() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if let Some(words) = content.strip_prefix('#') {
            comment.push(words.trim());
            continue;
        }
        let told = std::mem::take(&mut comment).join(" ");
        // What belongs to a value's default has no key of its own.
        let Some((key, _)) = content.split_once(':').filter(|(key, _)| !key.starts_with(['-', '"'])) else { continue };
        path.retain(|(depth, _)| *depth < indent);
        path.push((indent, key));
        if covered.is_some_and(|depth| indent > depth) {
            continue;
        }
        covered = None;
        let default = path.iter().try_fold(&values, |value, (_, key)| value.get(key));
        let default = default.with_context(|| format!("cannot find {content}"))?;
        let name = path.iter().map(|(_, key)| *key).collect::<Vec<_>>().join(".");
        match (told.is_empty(), default.as_object().is_some_and(|map| !map.is_empty())) {
            (true, true) => {}
            (true, false) => bail!("{name} has no comment"),
            (false, _) => {
                covered = Some(indent);
                table.push_str(&format!("| `{name}` | {} | {} |\n", shown(default), told.replace('|', "\\|")));
            }
        }
    }
    Ok(table)
}

fn shown(default: &Value) -> String {
    match default {
        Value::String(text) if text.is_empty() => String::new(),
        Value::String(text) => format!("`{text}`"),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => format!("`{default}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_comments_and_a_comment_on_a_map_is_for_all_of_it() {
        let values =
            "# Of nobody.\n\n# How\n# many.\nreplicas: 2\nimage:\n  # a|b\n  tag: \"\"\n# Both.\nlimits:\n  cpu: 1\n";
        let readme = with_table("# Chart\n\n## Values\n\nold\n", values).expect("a table");
        let rows =
            "| `replicas` | `2` | How many. |\n| `image.tag` |  | a\\|b |\n| `limits` | `{\"cpu\":1}` | Both. |\n";
        assert_eq!(readme, format!("# Chart\n\n## Values\n\n| value | default | what |\n|---|---|---|\n{rows}"));
        assert!(with_table("# Chart\n\n## Values\n", "replicas: 2\n").is_err(), "no comment");
        assert!(with_table("# Chart\n", values).is_err(), "no place");
    }
}
