//! `doctor --nginx`: does the module fit this nginx?
//!
//! nginx compares version and signature before any code of a module runs, and its message names neither a remedy nor a
//! package. Here both are read from the files: nginx's from `nginx -V` and its binary, the module's from its ELF note.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ops::finding::Finding;

/// The name of the module's ELF note, and its type.
const NOTE_NAME: &[u8] = b"push-stream\0";
const NOTE_KIND: u32 = 1;

/// As packages, nginx's own build and cargo name it.
const FILES: [&str; 2] = ["ngx_http_push_stream_module.so", "libngx_http_push_stream_module.so"];

pub fn examine(nginx: &Path, module: Option<&Path>) -> Vec<Finding> {
    let server = match Server::of(nginx) {
        Ok(server) => server,
        Err(error) => return vec![Finding::Bad(format!("nginx {}: {error}", nginx.display()))],
    };
    let mut findings = vec![Finding::Good(format!(
        "nginx {} is {}",
        nginx.display(),
        server.version
    ))];
    if server.has_module {
        findings.push(Finding::Good("the module is linked into this nginx".into()));
        return findings;
    }
    let Some(path) = module.map(Path::to_owned).or_else(|| server.module()) else {
        findings.push(Finding::Bad(format!(
            "no module in {}: {}",
            server.modules.display(),
            server.remedy()
        )));
        return findings;
    };
    let file = format!("module {}", path.display());
    let about = std::fs::read(&path)
        .map_err(|error| error.to_string())
        .and_then(|bytes| {
            About::read(&bytes).ok_or_else(|| "says nothing of itself: another module, perhaps that in C".into())
        });
    findings.extend(match about {
        Ok(about) => judge(&server, &file, &about),
        Err(error) => vec![Finding::Bad(format!("{file}: {error}; {}", server.remedy()))],
    });
    findings
}

fn judge(server: &Server, file: &str, about: &About) -> Vec<Finding> {
    let ours = env!("CARGO_PKG_VERSION");
    let fits = if about.nginx != server.version {
        Finding::Bad(format!(
            "{file} is for nginx {}, and this is {}: {}",
            about.nginx,
            server.version,
            server.remedy()
        ))
    } else if server
        .signature
        .as_ref()
        .is_some_and(|signature| *signature != about.signature)
    {
        Finding::Bad(format!(
            "{file} is for an nginx {} with other options (--with-compat makes them alike): {}",
            about.nginx,
            server.remedy()
        ))
    } else {
        Finding::Good(format!(
            "{file} fits it: version {}, commit {}",
            about.version, about.commit
        ))
    };
    let mut findings = vec![fits];
    if about.version != ours {
        findings.push(Finding::Warning(format!(
            "{file} is version {}, this worker {ours}: they are tested together in one version",
            about.version
        )));
    }
    findings
}

/// What an nginx says of itself.
struct Server {
    version: String,
    /// Of its options, as it compares it with that of a module; unknown if the binary cannot be read.
    signature: Option<String>,
    modules: PathBuf,
    has_module: bool,
}

impl Server {
    fn of(nginx: &Path) -> Result<Self, String> {
        let output = Command::new(nginx)
            .arg("-V")
            .output()
            .map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr);
        let version = said
            .lines()
            .find_map(|line| line.strip_prefix("nginx version: "))
            .and_then(|name| name.split('/').nth(1))
            .and_then(|rest| rest.split_whitespace().next())
            .ok_or("does not say its version when called with -V")?;
        let option = |name: &str| {
            let words = said.split_whitespace();
            words
                .filter_map(|word| word.strip_prefix(name))
                .next_back()
                .map(PathBuf::from)
        };
        let prefix = option("--prefix=").unwrap_or_else(|| "/usr/local/nginx".into());
        Ok(Self {
            version: version.into(),
            signature: std::fs::read(nginx).ok().and_then(|bytes| signature(&bytes)),
            modules: prefix.join(option("--modules-path=").unwrap_or_else(|| "modules".into())),
            // The last part of the path that --add-module was given is anybody's choice: only what is linked in says it.
            has_module: std::fs::read(nginx).is_ok_and(|bytes| About::read(&bytes).is_some()),
        })
    }

    fn module(&self) -> Option<PathBuf> {
        FILES
            .iter()
            .map(|file| self.modules.join(file))
            .find(|path| path.exists())
    }

    fn remedy(&self) -> String {
        match abi() {
            Some(abi) => format!(
                "install the libnginx-mod-http-push-stream that depends on {abi} (or build it: scripts/package), then restart nginx"
            ),
            None => format!(
                "build the module for nginx {} (scripts/build), then restart nginx",
                self.version
            ),
        }
    }
}

/// What Debian's nginx provides for its modules to depend on.
fn abi() -> Option<String> {
    let arguments = ["--showformat=${Provides}", "--show", "nginx"];
    let output = Command::new("dpkg-query").args(arguments).output().ok()?;
    let provides = String::from_utf8(output.stdout).ok()?;
    let mut names = provides.split(',').map(str::trim);
    names.find(|name| name.starts_with("nginx-abi-")).map(str::to_owned)
}

/// nginx's signature in its binary: three sizes, then a digit for each option, as a string of C.
fn signature(binary: &[u8]) -> Option<String> {
    let is_one = |text: &[u8]| {
        let mut parts = text.splitn(4, |byte| *byte == b',');
        let is_size = |part: Option<&[u8]>| matches!(part, Some([size]) if size.is_ascii_digit());
        is_size(parts.next())
            && is_size(parts.next())
            && is_size(parts.next())
            && parts
                .next()
                .is_some_and(|options| options.len() >= 30 && options.iter().all(|digit| matches!(digit, b'0' | b'1')))
    };
    let found = binary
        .split(|byte| *byte == 0)
        .find(|text| text.len() < 80 && is_one(text))?;
    String::from_utf8(found.to_vec()).ok()
}

/// The text of the module's note.
#[derive(Debug, Default, PartialEq, Eq)]
struct About {
    version: String,
    commit: String,
    nginx: String,
    signature: String,
}

impl About {
    /// From an ELF file, of 64 bits and little endian as everything that the module is built for.
    fn read(file: &[u8]) -> Option<Self> {
        if !file.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let headers = usize::try_from(word64(file, 0x28)?).ok()?;
        let (size, count) = (usize::from(word16(file, 0x3a)?), usize::from(word16(file, 0x3c)?));
        (0..count)
            .filter_map(|index| {
                let header = file.get(headers.checked_add(index * size)?..)?;
                // SHT_NOTE
                if word32(header, 4)? != 7 {
                    return None;
                }
                let begin = usize::try_from(word64(header, 0x18)?).ok()?;
                let length = usize::try_from(word64(header, 0x20)?).ok()?;
                file.get(begin..begin.checked_add(length)?)
            })
            .find_map(Self::in_notes)
    }

    /// A section has one note after another, each padded to four bytes.
    fn in_notes(mut notes: &[u8]) -> Option<Self> {
        loop {
            let name_length = usize::try_from(word32(notes, 0)?).ok()?;
            let text_length = usize::try_from(word32(notes, 4)?).ok()?;
            let text_begin = 12_usize.checked_add(name_length)?.checked_next_multiple_of(4)?;
            let text_end = text_begin.checked_add(text_length)?;
            let (name, text) = (notes.get(12..12 + name_length)?, notes.get(text_begin..text_end)?);
            if name == NOTE_NAME && word32(notes, 8)? == NOTE_KIND {
                return Some(Self::of_text(&String::from_utf8_lossy(text)));
            }
            notes = notes.get(text_end.checked_next_multiple_of(4)?..)?;
        }
    }

    fn of_text(text: &str) -> Self {
        let mut about = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let field = match key {
                "version" => &mut about.version,
                "commit" => &mut about.commit,
                "nginx" => &mut about.nginx,
                "signature" => &mut about.signature,
                // Of a later version.
                _ => continue,
            };
            value.clone_into(field);
        }
        about
    }
}

fn word16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], text: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [name.len() as u32, text.len() as u32, NOTE_KIND] {
            note.extend(word.to_le_bytes());
        }
        note.extend(name);
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend(text);
        note.resize(note.len().next_multiple_of(4), 0);
        note
    }

    #[test]
    fn a_note_is_found_behind_others() {
        let mut notes = note(b"GNU\0", b"12345");
        notes.extend(note(
            NOTE_NAME,
            b"version=1.2\nnginx=1.26.3\nnew=x\nsignature=8,4,8,01\ncommit=abc\n\0\0",
        ));
        let about = About::in_notes(&notes).unwrap();
        assert_eq!((about.version.as_str(), about.nginx.as_str()), ("1.2", "1.26.3"));
        assert_eq!((about.commit.as_str(), about.signature.as_str()), ("abc", "8,4,8,01"));
        for length in 0..notes.len() - 40 {
            assert_eq!(About::in_notes(&notes[..length]), None);
        }
    }

    #[test]
    fn files_that_are_cut_or_lie_say_nothing() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(About::read(&own), None);
        assert_eq!(About::read(b""), None);
        let mut header = own[..64].to_vec();
        assert_eq!(About::read(&header), None);
        header[0x28..0x30].fill(0xff);
        header[0x3a..0x3e].fill(0xff);
        assert_eq!(About::read(&header), None);
    }

    #[test]
    fn a_signature_is_told_from_other_strings() {
        let real = "8,4,8,0011111111010111001111111111111111";
        let binary = format!("x\x008,4,8,01\x008,4,8,00111111110101110011111111111111x1\0{real}\0y");
        assert_eq!(signature(binary.as_bytes()).as_deref(), Some(real));
        assert_eq!(signature(b"8,4,8"), None);
    }
}
