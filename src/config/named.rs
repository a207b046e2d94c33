//! Which files a configuration was read from.

use std::path::PathBuf;

use super::types::{Config, CredentialsConfig, Floor, Identity, LinkTls};
use super::{BESIDE, drop_ins};

impl Config {
    /// Every file that was read for it, and the folders whose contents were: the main file first, each one once. A user who
    /// cannot read one of them cannot use this configuration.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.file.clone()];
        for folder in BESIDE {
            let path = self.file.with_file_name(folder);
            if path.is_dir() {
                files.push(path);
                files.extend(drop_ins(&self.file, folder, &mut Vec::new()));
            }
        }
        let identity = |identity: &Identity| [identity.cert.path.clone(), identity.key.path.clone()];
        let tls = |tls: &LinkTls| {
            let own = tls.identity.as_ref().map(identity);
            std::iter::once(tls.ca.path.clone()).chain(own.into_iter().flatten()).collect::<Vec<_>>()
        };
        let brokers = match &self.floor {
            Floor::Broker(broker) => Some(broker),
            Floor::Listen(listen) => {
                if let Some(tls) = &listen.tls {
                    files.extend(identity(&tls.identity));
                    files.extend(tls.client_ca.as_ref().map(|ca| ca.path.clone()));
                }
                files.extend(listen.users.as_ref().map(|users| users.path.clone()));
                None
            }
        };
        for broker in brokers.into_iter().chain(self.cloud.as_ref().map(|cloud| &cloud.broker)) {
            files.extend(broker.tls.as_ref().map(tls).into_iter().flatten());
            let password = broker.login.as_ref().and_then(|login| login.password.as_ref());
            files.extend(password.map(|password| password.path.clone()));
        }
        match self.dynamodb.as_ref().map(|tables| &tables.credentials) {
            Some(CredentialsConfig::IotRole(role)) => {
                files.push(role.ca.path.clone());
                files.extend(identity(&role.identity));
            }
            Some(CredentialsConfig::SharedFile { path, .. }) => files.push(path.clone()),
            Some(CredentialsConfig::Keys(_)) | None => {}
        }
        let mut seen = std::collections::BTreeSet::new();
        files.retain(|file| seen.insert(file.clone()));
        files
    }
}
