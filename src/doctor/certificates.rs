//! How long certificates are good, and whether keys are theirs.
//!
//! Of a chain of our own the certificate that ends first counts; of authorities the one that ends last, because several
//! stand side by side while they are changed.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use floorgate_model::Timestamp;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::parse_x509_certificate;

use super::report::{Check, Finding};
use crate::config::{Config, CredentialsConfig, Floor, Identity, LinkTls, Pem};

/// A certificate that ends sooner than this is a warning.
pub const RENEW_WITHIN: Duration = Duration::from_secs(30 * 86_400);

/// What a file is there for.
#[derive(Debug)]
enum Use<'a> {
    /// Who signs the other side's certificates.
    Authority(&'a Pem),
    /// Our own certificate and its key.
    Own(&'a Identity),
}

/// From when until when.
#[derive(Debug, Clone, Copy)]
struct Validity {
    from: Timestamp,
    to: Timestamp,
}

/// Looks at every certificate the configuration names, each file once.
pub(super) fn look(config: &Config, now: Timestamp) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    let uses = uses(config).into_iter().filter(|used| match used {
        Use::Authority(pem) => seen.insert((&pem.path, None)),
        Use::Own(identity) => seen.insert((&identity.cert.path, Some(&identity.key.path))),
    });
    let findings: Vec<_> = uses.collect::<Vec<_>>().iter().flat_map(|used| judge(used, now)).collect();
    if findings.is_empty() {
        return vec![Finding::skipped(Check::Certificate, "the configuration names none")];
    }
    findings
}

fn uses(config: &Config) -> Vec<Use<'_>> {
    let mut uses = Vec::new();
    fn of_link<'a>(tls: Option<&'a LinkTls>, uses: &mut Vec<Use<'a>>) {
        let Some(tls) = tls else { return };
        uses.push(Use::Authority(&tls.ca));
        uses.extend(tls.identity.as_ref().map(Use::Own));
    }
    match &config.floor {
        Floor::Broker(broker) => of_link(broker.tls.as_ref(), &mut uses),
        Floor::Listen(listen) => {
            if let Some(tls) = &listen.tls {
                uses.push(Use::Own(&tls.identity));
                uses.extend(tls.client_ca.as_ref().map(Use::Authority));
            }
        }
    }
    of_link(config.cloud.as_ref().and_then(|cloud| cloud.broker.tls.as_ref()), &mut uses);
    if let Some(CredentialsConfig::IotRole(role)) = config.dynamodb.as_ref().map(|tables| &tables.credentials) {
        uses.push(Use::Authority(&role.ca));
        uses.push(Use::Own(&role.identity));
    }
    uses
}

fn judge(used: &Use<'_>, now: Timestamp) -> Vec<Finding> {
    let check = Check::Certificate;
    let (pem, own) = match used {
        Use::Authority(pem) => (*pem, None),
        Use::Own(identity) => (&identity.cert, Some(*identity)),
    };
    let subject = pem.path.display().to_string();
    let all = validities(&pem.bytes);
    let deciding = match own {
        Some(_) => all.iter().min_by_key(|validity| validity.to),
        None => all.iter().max_by_key(|validity| validity.to),
    };
    let Some(validity) = deciding else {
        let advice = "give an X.509 certificate in PEM";
        return vec![Finding::fail(check, "holds no certificate that can be read", advice).of(subject)];
    };
    let advice = match own {
        Some(_) => {
            "renew it and put the new one, with its key, in its place; docs/operations.md says what reads it when"
        }
        None => "get the authority's new certificate and put it in its place",
    };
    let mut findings = vec![of_validity(*validity, now, advice).of(subject)];
    findings.extend(own.and_then(of_key));
    findings
}

fn of_validity(validity: Validity, now: Timestamp, advice: &str) -> Finding {
    let check = Check::Certificate;
    let date = |at: Timestamp| at.to_string().chars().take(10).collect::<String>();
    let days = |time: Duration| time.as_secs() / 86_400;
    if now < validity.from {
        let found = format!("not valid before {}; it is {} here", date(validity.from), date(now));
        return Finding::fail(check, found, "set this machine's clock right, or give a certificate that is valid now");
    }
    if now >= validity.to {
        let found = format!("expired {} days ago, on {}", days(now.since(validity.to)), date(validity.to));
        return Finding::fail(check, found, advice);
    }
    let left = validity.to.since(now);
    let found = format!("good for {} days, until {}", days(left), date(validity.to));
    if left < RENEW_WITHIN { Finding::warn(check, found, advice) } else { Finding::ok(check, found) }
}

fn validities(pem: &[u8]) -> Vec<Validity> {
    let time = |seconds: i64| Timestamp::from_millis(seconds.saturating_mul(1_000));
    let certificates = CertificateDer::pem_slice_iter(pem).flatten();
    let read = certificates.filter_map(|certificate| {
        let (_, parsed) = parse_x509_certificate(&certificate).ok()?;
        let validity = parsed.validity();
        Some(Validity { from: time(validity.not_before.timestamp()), to: time(validity.not_after.timestamp()) })
    });
    read.collect()
}

/// What is wrong with a key; nothing, if nothing is.
fn of_key(identity: &Identity) -> Option<Finding> {
    let subject = identity.key.path.display().to_string();
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&identity.cert.bytes).flatten().collect();
    let provider = rustls::crypto::ring::default_provider();
    let fits = PrivateKeyDer::from_pem_slice(&identity.key.bytes)
        .map_err(|error| error.to_string())
        .and_then(|key| CertifiedKey::from_der(chain, key, &provider).map_err(|error| error.to_string()));
    let open = std::fs::metadata(&identity.key.path).is_ok_and(|found| found.mode() & 0o007 != 0);
    if let Err(why) = fits {
        let found = format!("does not belong to `{}`: {why}", identity.cert.path.display());
        let advice = "give the certificate and the key that were made together";
        return Some(Finding::fail(Check::Certificate, found, advice).of(subject));
    }
    if open {
        let advice =
            format!("take it back: `chmod o= {subject}`, and ask for a new certificate if it may have been read");
        return Some(
            Finding::warn(Check::Certificate, "everybody on this machine may read this key", advice).of(subject),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::State;
    use std::path::Path;

    /// A certificate of these days around the epoch's day 20,000, and its key.
    fn identity(folder: &Path, from_day: i64, to_day: i64) -> Identity {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["gw".to_owned()]).unwrap();
        let date =
            |day: i64| rcgen::date_time_ymd(2024, 10, 4) + Duration::from_secs(86_400) * u32::try_from(day).unwrap();
        (params.not_before, params.not_after) = (date(from_day), date(to_day));
        let pem = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, &text).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            Pem { path, bytes: text.into_bytes() }
        };
        Identity {
            cert: pem("cert.pem", params.self_signed(&key).unwrap().pem()),
            key: pem("key.pem", key.serialize_pem()),
        }
    }

    /// So many days after 2024-10-04.
    fn day(n: i64) -> Timestamp {
        Timestamp::from_millis((20_000 + n) * 86_400_000)
    }

    #[test]
    fn thirty_days_before_its_end_a_certificate_is_a_warning_and_after_it_red() {
        let folder = tempfile::tempdir().unwrap();
        let identity = identity(folder.path(), 10, 100);
        let state = |now| judge(&Use::Own(&identity), now)[0].clone();
        assert_eq!(state(day(9)).state, State::Fail);
        assert!(state(day(9)).found.contains("not valid before 2024-10-14"), "{:?}", state(day(9)));
        assert_eq!(
            (state(day(60)).state, state(day(60)).found.as_str()),
            (State::Ok, "good for 40 days, until 2025-01-12")
        );
        assert_eq!(state(day(71)).state, State::Warn);
        assert_eq!(state(day(102)).state, State::Fail);
        assert!(state(day(102)).found.starts_with("expired 2 days ago"));
        assert_eq!(judge(&Use::Own(&identity), day(60)).len(), 1, "and its key is all right");
    }

    #[test]
    fn of_several_authorities_the_last_to_end_counts_and_of_our_chain_the_first() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (old, new) = (identity(one.path(), 0, 50), identity(two.path(), 0, 500));
        let mut both = Identity { cert: old.cert.clone(), key: old.key.clone() };
        both.cert.bytes.extend(&new.cert.bytes);
        assert_eq!(judge(&Use::Authority(&both.cert), day(100))[0].state, State::Ok);
        assert_eq!(judge(&Use::Own(&both), day(100))[0].state, State::Fail);
    }

    #[test]
    fn a_key_of_another_certificate_and_one_that_everybody_reads_are_told() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mine, other) = (identity(one.path(), 0, 500), identity(two.path(), 0, 500));
        let mixed = Identity { cert: mine.cert.clone(), key: other.key };
        let told = judge(&Use::Own(&mixed), day(1));
        assert!(told[1].state == State::Fail && told[1].found.contains("does not belong to"), "{told:?}");
        std::fs::set_permissions(&mine.key.path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        let told = judge(&Use::Own(&mine), day(1));
        assert!(told[1].state == State::Warn && told[1].found.contains("everybody"), "{told:?}");
    }

    #[test]
    fn a_file_without_a_certificate_is_red() {
        let pem = Pem { path: "x.pem".into(), bytes: b"nothing".to_vec() };
        assert_eq!(judge(&Use::Authority(&pem), day(0))[0].state, State::Fail);
    }
}
