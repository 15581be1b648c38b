//! Access tokens of a configuration: key files, what was verified with them, and who is revoked.
//!
//! * [`files`]: key files and files of revocations, read again when they change.
//! * [`tickets`]: tickets in place of tokens. [`subjects`]: whose they are, as numbers.
//!
//! One value per configuration. It is made while that is read, so that a bad file refuses the configuration, and each
//! nginx worker goes on with its own copy.

mod files;
pub mod subjects;
pub mod tickets;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ngx::ffi::*;
use ngx::ngx_log_error;
use push_stream_core::store::Now;
use push_stream_core::token::verifier::Source;
use push_stream_core::token::{Algorithm, Cache, Dialect, Rejection, Revocations, Token, Verifier, sha256};

use files::{File, KeyFile, RevocationFile};

/// Interval at which a worker looks whether files have changed.
const LOOK_MS: u64 = 5000;

/// A key file as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySource {
    pub path: Box<[u8]>,
    pub issuer: Option<String>,
    pub algorithms: Vec<Algorithm>,
}

/// What the tokens of some locations must fulfil, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub keys: Vec<KeySource>,
    pub audience: Vec<String>,
    pub dialect: Dialect,
    /// Seconds.
    pub leeway: u64,
    pub revoked: Option<Box<[u8]>>,
}

/// Names one policy of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyId(u32);

/// All policies of a configuration, with their files.
#[derive(Debug, Default)]
pub struct Tokens {
    state: RefCell<State>,
    /// Does any location issue tickets?
    pub tickets: Cell<bool>,
}

#[derive(Debug, Default)]
struct State {
    policies: Vec<(Policy, Verifier)>,
    keys: Vec<File<KeyFile>>,
    revocations: Vec<File<RevocationFile>>,
    cache: Cache,
    /// The last token that was not in the cache, and what became of it: a request may ask several times, for its
    /// variables and for itself.
    last: Option<([u8; 32], PolicyId, Rejection)>,
    look_again_ms: u64,
}

impl Tokens {
    /// Finds an equal policy or adds this one, and reads its files. The error names the file and says what is wrong
    /// with it.
    pub fn intern(&self, policy: Policy) -> Result<PolicyId, String> {
        let state = &mut *self.state.borrow_mut();
        if let Some(known) = state.policies.iter().position(|(known, _)| *known == policy) {
            return Ok(PolicyId(known as u32));
        }
        for source in &policy.keys {
            let file = KeyFile {
                path: source.path.clone(),
                algorithms: source.algorithms.clone(),
            };
            files::add(&mut state.keys, file)?;
        }
        if let Some(path) = &policy.revoked {
            files::add(&mut state.revocations, RevocationFile(path.clone()))?;
        }
        let verifier = state.verifier(&policy);
        state.policies.push((policy, verifier));
        Ok(PolicyId(state.policies.len() as u32 - 1))
    }

    /// Verifies a token now.
    pub fn verify(&self, policy: PolicyId, text: &[u8]) -> Result<Rc<Token>, Rejection> {
        let state = &mut *self.state.borrow_mut();
        // It would only be hashed to be refused.
        if text.len() > push_stream_core::token::LONGEST {
            return Err(Rejection::TooLong);
        }
        let hash = sha256(text);
        let token = match state.cache.get(hash, policy.0) {
            Some(token) => token,
            None => state.verify_unknown(policy, hash, text)?,
        };
        let (_, verifier) = &state.policies[policy.0 as usize];
        verifier.check(&token, Now::read().unix_secs())?;
        Ok(token)
    }

    /// Looks whether files have changed, if that was not done lately, and takes up those that have. Returns how many
    /// could not be read.
    pub fn look_after_files(&self, now_ms: u64) -> u64 {
        let state = &mut *self.state.borrow_mut();
        if state.policies.is_empty() || now_ms < state.look_again_ms {
            return 0;
        }
        state.look_again_ms = now_ms + LOOK_MS;
        state.read_again()
    }

    /// Does any location ask for tokens?
    pub fn are_used(&self) -> bool {
        !self.state.borrow().policies.is_empty()
    }

    /// Names the policy in a ticket, whatever else is in the configuration.
    pub fn fingerprint(&self, policy: PolicyId) -> u64 {
        let state = self.state.borrow();
        let hash = sha256(format!("{:?}", state.policies[policy.0 as usize].0).as_bytes());
        hash.iter()
            .take(8)
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Checks a token that a ticket stands for: what was revoked, and the end.
    pub fn check(&self, policy: PolicyId, token: &Token) -> Result<(), Rejection> {
        let (_, verifier) = &self.state.borrow().policies[policy.0 as usize];
        verifier.check(token, Now::read().unix_secs())
    }

    /// Seconds by which clocks may differ.
    pub fn leeway(&self, policy: PolicyId) -> u64 {
        self.state.borrow().policies[policy.0 as usize].1.leeway
    }
}

impl State {
    fn verify_unknown(&mut self, policy: PolicyId, hash: [u8; 32], text: &[u8]) -> Result<Rc<Token>, Rejection> {
        if let Some((_, _, rejection)) = self.last.filter(|(of, by, _)| (*of, *by) == (hash, policy)) {
            return Err(rejection);
        }
        let (_, verifier) = &self.policies[policy.0 as usize];
        match verifier.verify(text) {
            Ok(token) => {
                let token = Rc::new(token);
                self.cache.put(hash, policy.0, token.clone());
                Ok(token)
            }
            Err(rejection) => {
                self.last = Some((hash, policy, rejection));
                Err(rejection)
            }
        }
    }

    /// The verifier of a policy whose files are read.
    fn verifier(&self, policy: &Policy) -> Verifier {
        let keys_of = |source: &KeySource| {
            let is_it = |file: &&File<KeyFile>| file.is(&source.path, &source.algorithms);
            self.keys.iter().find(is_it).map(|file| file.content.clone())
        };
        let revocations = self.revocations.iter();
        let mut revocations = revocations.filter(|file| Some(&file.kind.0) == policy.revoked.as_ref());
        Verifier {
            sources: policy
                .keys
                .iter()
                .filter_map(|source| {
                    Some(Source {
                        issuer: source.issuer.clone(),
                        keys: keys_of(source)?,
                    })
                })
                .collect(),
            audience: policy.audience.clone(),
            dialect: policy.dialect,
            leeway: policy.leeway,
            revocations: revocations
                .next()
                .map_or_else(Rc::<Revocations>::default, |file| file.content.clone()),
        }
    }

    fn read_again(&mut self) -> u64 {
        let mut problems = Vec::new();
        let keys_changed = files::read_again(&mut self.keys, &mut problems);
        let revocations_changed = files::read_again(&mut self.revocations, &mut problems);
        for problem in &problems {
            let log = ngx::log::ngx_cycle_log().as_ptr();
            ngx_log_error!(
                NGX_LOG_ERR,
                log,
                "push stream: {problem}; what was read before stays in force"
            );
        }
        if keys_changed {
            // A token may have been verified by a key that is not there any more, or refused for want of one that is.
            self.cache.clear();
            self.last = None;
        }
        if keys_changed || revocations_changed {
            for index in 0..self.policies.len() {
                self.policies[index].1 = self.verifier(&self.policies[index].0);
            }
        }
        problems.len() as u64
    }
}
