//! The door for people and pipelines: `podlight-activator inject`.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result};
use podlight_e2e::{binary, manifests};
use serde_json::Value;

use super::{golden, golden_folder};

fn run(arguments: &[&str], stdin: &str) -> Result<Output> {
    let mut command = Command::new(binary("podlight-activator")?);
    command.arg("inject").args(arguments).env_clear();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("no stdin")?;
    // It may have ended before it read anything.
    let _ = input.write_all(stdin.as_bytes());
    drop(input);
    Ok(child.wait_with_output()?)
}

fn printed(output: &Output) -> Result<String> {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout.clone())?)
}

#[test]
fn golden_pods_are_printed_as_they_are_to_become() -> Result<()> {
    for (name, case) in golden()? {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(golden_folder())
            .join(format!("{name}.yaml"));
        let text = std::fs::read_to_string(&file)?;
        let output = run(&["-f", &file.display().to_string()], "")?;
        match case.injected {
            Some(injected) => {
                let written: Value = serde_saphyr::from_str(&printed(&output)?)?;
                assert_eq!(written, injected, "{name}");
            }
            // What was asked for wrongly is a fault; everything else is printed as it was.
            None if ["bad-label", "bad-annotation", "bad-position", "annotation-of-no-container"]
                .contains(&name.as_str()) =>
            {
                assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(65), &b""[..]), "{name}");
            }
            None => assert_eq!(printed(&output)?, text, "{name}"),
        }
    }
    Ok(())
}

#[test]
fn stdin_and_files_are_one_stream_and_a_second_pass_changes_nothing() -> Result<()> {
    let service = "apiVersion: v1\nkind: Service # as it was\nmetadata:\n  name: web\n";
    let http = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(golden_folder()).join("http.yaml");
    let once = printed(&run(&["-f", "-", "-f", &http.display().to_string()], service)?)?;
    assert!(once.starts_with(&format!("{service}---\n")), "{once}");
    assert_eq!(
        once.matches("- name: podlight-sidecar\n").count() + once.matches("  name: podlight-sidecar\n").count(),
        1,
        "{once}"
    );
    assert_eq!(printed(&run(&["-f", "-"], &once)?)?, once);
    Ok(())
}

#[test]
fn every_failure_has_its_exit_code_and_says_why() -> Result<()> {
    for (arguments, stdin, code, said) in [
        (vec![], "", 64, "--filename"),
        (vec!["-f", "-", "--sidecar-limits=x"], "", 64, "--sidecar-limits"),
        (vec!["-f", "-"], "a: [", 65, "document 1"),
        (vec!["-f", "/nowhere"], "", 66, "/nowhere"),
    ] {
        let output = run(&arguments, stdin)?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(code), &b""[..]), "{error}");
        assert!(error.contains(said), "{error}");
    }
    let exec = "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: app, readinessProbe: {exec: {command: [x]}}}]}\n";
    let output = run(&["-f", "-"], exec)?;
    assert_eq!(printed(&output)?, exec);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("Pod x is left as it is: the readinessProbe of container app")
    );
    Ok(())
}

#[test]
fn the_snippet_of_the_docs_is_what_the_command_makes() -> Result<()> {
    let snippet = manifests(std::path::Path::new("docs/injection/snippet.yaml"))?.remove(0);
    let mut bare = snippet.clone();
    let spec = bare["spec"]["template"]["spec"].as_object_mut().context("no template")?;
    spec.remove("initContainers").context("no sidecar")?;
    spec.remove("volumes").context("no volume")?;
    let written: Value = serde_saphyr::from_str(&printed(&run(&["-f", "-"], &bare.to_string())?)?)?;
    assert_eq!(written, snippet);
    Ok(())
}
