//! Writes the table of values into the chart's README.

use anyhow::Result;
use podlight_e2e::chart::{folder, readme};

fn main() -> Result<()> {
    let (file, values) = (folder().join("README.md"), std::fs::read_to_string(folder().join("values.yaml"))?);
    let written = readme::with_table(&std::fs::read_to_string(&file)?, &values)?;
    Ok(std::fs::write(file, written)?)
}
