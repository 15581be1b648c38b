//! Checks that everything a template or condition calls exists, on every branch: one event takes only one of them, so a
//! typo in a branch would otherwise park events long after the start.
//!
//! minijinja resolves names when it renders. Its compiled instructions, an interface it calls unstable, hold all names;
//! `Cargo.lock` pins the version.

use std::collections::HashSet;

use minijinja::machinery::{self, Instruction};
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};

/// Functions that minijinja defines within parts of a template.
const LOCAL_FUNCTIONS: [&str; 3] = ["loop", "super", "caller"];

/// Finds the first call of an undefined function, with its line.
pub fn check_calls<'a>(environment: &'a Environment<'a>, source: &'a str) -> Result<(), String> {
    let template = environment
        .template_from_str(source)
        .map_err(|error| describe(&error))?;
    let template = machinery::get_compiled_template(&template);
    let all = || std::iter::once(&template.instructions).chain(template.blocks.values());
    let mut functions: HashSet<String> = environment.globals().map(|(name, _)| name.to_owned()).collect();
    functions.extend(LOCAL_FUNCTIONS.map(str::to_owned));
    for instructions in all() {
        let names = (0..).map_while(|index| instructions.get(index));
        functions.extend(names.filter_map(|instruction| match instruction {
            Instruction::StoreLocal(name) | Instruction::BuildMacro(name, ..) => Some((*name).to_owned()),
            _ => None,
        }));
    }
    let mut state = environment.empty_state();
    for instructions in all() {
        for (index, instruction) in (0..).map_while(|index| Some((index, instructions.get(index)?))) {
            let problem = match instruction {
                Instruction::ApplyFilter(name, ..)
                    if is(state.apply_filter(name, &[]).err(), ErrorKind::UnknownFilter) =>
                {
                    format!("there is no filter \"{name}\"")
                }
                Instruction::PerformTest(name, ..)
                    if is(state.perform_test(name, &[]).err(), ErrorKind::UnknownTest) =>
                {
                    format!("there is no test \"{name}\"")
                }
                Instruction::CallFunction(name, _) if !functions.contains(*name) => {
                    format!("there is no function \"{name}\"")
                }
                Instruction::Include(false) | Instruction::LoadBlocks => {
                    "there is no other template to include or extend".to_owned()
                }
                _ => continue,
            };
            let line = instructions.get_line(index).filter(|_| source.contains('\n'));
            return Err(line.map_or(problem.clone(), |line| format!("template line {line}: {problem}")));
        }
    }
    Ok(())
}

fn is(error: Option<Error>, kind: ErrorKind) -> bool {
    error.is_some_and(|error| error.kind() == kind)
}

/// Is the error independent of the event? Other errors with an empty event may be due to its missing fields.
pub fn is_of_the_template(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::MissingArgument | ErrorKind::TooManyArguments | ErrorKind::OutOfFuel
    )
}

/// An event without fields, for a trial rendering.
pub fn empty_event() -> Value {
    minijinja::context! { _event => minijinja::context! {} }
}

/// The error as one line of text.
pub fn describe(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_calls_are_found_in_every_branch_and_known_ones_pass() {
        let environment = Environment::new();
        for (source, expected) in [
            ("{{ id|shout }}", "there is no filter \"shout\""),
            (
                "{% if a %}\n{% if b %}{{ id|shout }}{% endif %}{% endif %}",
                "template line 2: there is no filter \"shout\"",
            ),
            ("{{ a and b|shout }}", "there is no filter \"shout\""),
            ("{{ a is loud }}", "there is no test \"loud\""),
            ("{% if a %}{{ shout(a) }}{% endif %}", "there is no function \"shout\""),
            (
                "{% block x %}{{ shout(a) }}{% endblock %}",
                "there is no function \"shout\"",
            ),
            (
                "{% macro m(x) %}{{ x|shout }}{% endmacro %}{{ m(1) }}",
                "there is no filter \"shout\"",
            ),
            (
                "{% include 'other' %}",
                "there is no other template to include or extend",
            ),
            (
                "{% extends 'other' %}",
                "there is no other template to include or extend",
            ),
        ] {
            assert_eq!(check_calls(&environment, source).unwrap_err(), expected, "{source}");
        }
        for source in [
            "{{ id|upper|replace('a', 'b') }}{{ a is defined }}{{ range(3) }}",
            "{% macro m(x) %}{{ x }}{{ caller() }}{% endmacro %}{% call m(1) %}c{% endcall %}",
            "{% for a in b recursive %}{{ loop(a) }}{{ loop.cycle('x', 'y') }}{% endfor %}",
            "{% block x %}{{ dict(a=1) }}{% endblock %}{{ self.x() }}",
            "{% set n = namespace(a=1) %}{{ n.a }}",
        ] {
            assert_eq!(check_calls(&environment, source), Ok(()), "{source}");
        }
    }
}
