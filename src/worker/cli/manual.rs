//! `manual`: man pages and shell completions, for packages.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Outcome};

/// Writes a page for each command, and completions for three shells.
pub fn run(dir: &Path) -> Outcome {
    write(dir).map_err(|error| format!("cannot write to {}: {error}", dir.display()))
}

fn write(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut command, &name, dir)?;
    }
    clap_mangen::generate_to(command, dir)
}
