//! `wyd config`: what is in force.

use shared::config::{Config, document};

use crate::cli::ConfigArgs;
use crate::process::{Failure, Source};

pub(crate) fn run(source: Source<'_>, args: &ConfigArgs) -> Result<(), Failure> {
    if args.default {
        print!("{}", document::default_file());
        return Ok(());
    }
    let config = source.load(&Config::default())?;
    let text = toml::to_string(&config).map_err(|error| Failure::Other(error.to_string()))?;
    print!("{text}");
    Ok(())
}
