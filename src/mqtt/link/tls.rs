//! Certificates for a link: read, checked, and every failure names its file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Protocol name AWS IoT wants on port 443 with a client certificate.
pub const ALPN_AWS_443: &[u8] = b"x-amzn-mqtt-ca";
/// Where Debian keeps the authorities the system trusts; for a link whose configuration names no `ca`.
pub const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Which files a TLS link uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authorities the broker's certificate must come from, PEM.
    pub ca: PathBuf,
    /// Our certificate chain and its key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Their contents.
pub(in crate::mqtt) struct Pem {
    pub(super) ca: Vec<u8>,
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl TlsFiles {
    pub(in crate::mqtt) async fn read(&self) -> Result<Pem, String> {
        let ca = read(&self.ca).await?;
        let identity = match &self.identity {
            Some((cert, key)) => Some((read(cert).await?, read(key).await?)),
            None => None,
        };
        Ok(Pem { ca, identity })
    }

    /// The rustls configuration: ring, TLS 1.2 and 1.3, the broker's certificate always verified.
    pub(in crate::mqtt) fn client_config(&self, pem: &Pem, alpn: Option<&[u8]>) -> Result<Arc<ClientConfig>, String> {
        let mut roots = RootCertStore::empty();
        let (_, unusable) = roots.add_parsable_certificates(certificates(&self.ca, &pem.ca)?);
        if roots.is_empty() {
            return Err(format!("`{}` has no usable certificate ({unusable} unusable)", self.ca.display()));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| format!("TLS cannot be set up: {e}"))?
            .with_root_certificates(roots);
        let mut config = match (&self.identity, &pem.identity) {
            (Some((cert_path, key_path)), Some((cert, key))) => {
                let chain = certificates(cert_path, cert)?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|e| format!("`{}` has no usable private key: {e}", key_path.display()))?;
                builder.with_client_auth_cert(chain, key).map_err(|e| {
                    format!("`{}` and `{}` do not fit together: {e}", cert_path.display(), key_path.display())
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols.extend(alpn.map(<[u8]>::to_vec));
        Ok(Arc::new(config))
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, String> {
    tokio::fs::read(path).await.map_err(|e| format!("cannot read `{}`: {e}", path.display()))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!("`{}` has no certificate; a PEM file is expected", path.display())),
        Err(e) => Err(format!("`{}` is no PEM file of certificates: {e}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> TlsFiles {
        let path = |name: &str| folder.join(name);
        TlsFiles { ca: path("ca.pem"), identity: Some((path("cert.pem"), path("key.pem"))) }
    }

    #[tokio::test]
    async fn each_failure_names_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let failure = |files: TlsFiles| async move {
            match files.read().await {
                Ok(pem) => files.client_config(&pem, None).map(|_| ()).unwrap_err(),
                Err(e) => e,
            }
        };
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert!(failure(files.clone()).await.contains("ca.pem`: No such file"));

        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec!["x".into()]).unwrap().self_signed(&key).unwrap();
        write("ca.pem", "nothing");
        write("cert.pem", &cert.pem());
        write("key.pem", "nothing");
        assert!(failure(files.clone()).await.contains("ca.pem` has no certificate"));
        write("ca.pem", &cert.pem());
        assert!(failure(files.clone()).await.contains("key.pem` has no usable private key"));
        write("key.pem", &rcgen::KeyPair::generate().unwrap().serialize_pem());
        let error = failure(files.clone()).await;
        assert!(error.contains("cert.pem` and `") && error.contains("key.pem` do not fit"), "{error}");
        write("key.pem", &key.serialize_pem());
        let pem = files.read().await.unwrap();
        assert_eq!(files.client_config(&pem, Some(ALPN_AWS_443)).unwrap().alpn_protocols, [ALPN_AWS_443]);
    }
}
