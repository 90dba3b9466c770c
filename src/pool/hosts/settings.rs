//! The settings of a pool, as sent to each host: encoded from a builder here, decoded into a builder there.

use std::ffi::OsString;
use std::sync::Arc;

use procpool_worker::attach::Attachments;
use procpool_worker::{seed, sys};

use super::Hosts;
use super::requests::Plan;
use super::wire::{Blob, InitializerCall, Settings};
use crate::error::Error;
use crate::pool::builder::PoolBuilder;
use crate::pool::config::{EnvPerWorker, Initializer, Preload};
use crate::pool::limits::Limits;
use crate::pool::observe::callbacks::contain;
#[cfg(feature = "sandbox")]
use crate::pool::sandbox::Sandbox;
use crate::worker_ref::HostName;

impl PoolBuilder {
    /// Returns the settings for the other hosts.
    ///
    /// # Errors
    ///
    /// The initializer's, and that of an argument that can't leave this host.
    pub(in crate::pool) fn plan(&mut self) -> Result<Plan, Error> {
        let initializer = self.initializer.take().transpose()?;
        let preload = self.preload.take().transpose()?;
        let holds_handle = |option| Error::Option {
            option,
            value: "one that holds a handle of this host".to_owned(),
            remedy: "a pool that spans hosts needs an argument without handles",
        };
        if initializer.as_ref().is_some_and(|initializer| !initializer.attachments.is_empty()) {
            return Err(holds_handle("initializer"));
        }
        if preload.as_ref().is_some_and(|preload| !preload.attachments.is_empty()) {
            return Err(holds_handle("preload"));
        }
        let preload_call =
            preload.as_ref().map(|preload| (preload.call, Blob(preload.argument.clone())));
        self.preload = preload.map(Ok);
        let call = initializer.as_ref().map(|initializer| InitializerCall {
            call: initializer.call,
            argument: Blob(initializer.argument.clone()),
            width: initializer.width,
        });
        self.initializer = initializer.map(Ok);
        let pairs = |env: &[(OsString, OsString)]| -> Vec<(Blob, Blob)> {
            env.iter().map(|(name, value)| (Blob::of(name), Blob::of(value))).collect()
        };
        let env_of = |slot| self.env_per_worker.iter().flat_map(|env| pairs(&env(slot))).collect();
        // As many as a host may have workers. A closure that panics has no more.
        const MAX_ENVS: usize = 1024;
        let workers_on = self.workers_on.iter().map(|(_, workers)| *workers);
        let asked_for = workers_on.chain([self.workers]).max().unwrap_or(0);
        let most = if self.workers > 0 { asked_for } else { asked_for.max(MAX_ENVS) };
        let envs = if self.env_per_worker.is_empty() { 0 } else { most };
        let env_of = |slot| contain(|| env_of(slot)).ok();
        let settings = Settings {
            name: self.name.clone(),
            host: String::new(),
            workers: 0,
            first_slot: 0,
            seed: *self.seed.get_or_insert_with(sys::entropy),
            initializer: call,
            start_method: self.chosen_start_method()?,
            preload: preload_call,
            start_timeout: self.start_timeout,
            env: pairs(&self.env),
            env_per_worker: (0..envs).map_while(env_of).collect(),
            current_dir: self.current_dir.as_ref().map(Blob::of),
            output: self.output,
            kill_grace: self.kill_grace,
            max_tasks: self.max_tasks,
            max_memory: self.max_memory,
            idle_timeout: self.idle_timeout,
            min_workers: u32::try_from(self.min_workers).unwrap_or(u32::MAX),
            initial_workers: self.initial_workers.and_then(|most| u32::try_from(most).ok()),
            limits: self.limits.resources(),
            nice: self.nice,
            pin_cpus: self.pin_cpus,
            is_observed: !self.observers.is_empty(),
            worker_logs: self.chosen_worker_logs(),
            #[cfg(feature = "sandbox")]
            sandbox: self.sandbox.clone().map(Sandbox::into_parts),
        };
        Ok(Plan { settings, workers: self.workers, workers_on: self.workers_on.clone() })
    }

    /// Returns the builder of a pool that serves one of another host.
    pub(in crate::pool) fn of_settings(settings: Settings) -> Self {
        let pairs = |env: Vec<(Blob, Blob)>| -> Vec<(OsString, OsString)> {
            env.into_iter().map(|(name, value)| (name.into_os(), value.into_os())).collect()
        };
        let envs: Vec<_> = settings.env_per_worker.into_iter().map(pairs).collect();
        let env: EnvPerWorker = Arc::new(move |slot| envs.get(slot).cloned().unwrap_or_default());
        let first_slot = settings.first_slot as usize;
        Self {
            workers: settings.workers as usize,
            name: settings.name,
            initializer: settings.initializer.map(|call| {
                Ok(Initializer {
                    call: call.call,
                    argument: call.argument.0,
                    attachments: Attachments::default(),
                    width: call.width,
                })
            }),
            start_method: Some(settings.start_method),
            preload: settings.preload.map(|(call, argument)| {
                Ok(Preload { call, argument: argument.0, attachments: Attachments::default() })
            }),
            start_timeout: settings.start_timeout,
            env: pairs(settings.env),
            env_per_worker: vec![env],
            current_dir: settings.current_dir.map(|dir| dir.into_os().into()),
            output: settings.output,
            kill_grace: settings.kill_grace,
            max_tasks: settings.max_tasks,
            max_memory: settings.max_memory,
            idle_timeout: settings.idle_timeout,
            min_workers: settings.min_workers as usize,
            initial_workers: settings.initial_workers.map(|most| most as usize),
            limits: Limits::of_resources(settings.limits),
            nice: settings.nice,
            pin_cpus: settings.pin_cpus,
            worker_logs: Some(settings.worker_logs),
            // An initializer's random numbers depend on the slot.
            seed: Some(seed::advance(settings.seed, first_slot as u64)),
            hosts: Hosts::Local,
            agent: Some((HostName::new(&settings.host), first_slot)),
            #[cfg(feature = "sandbox")]
            sandbox: settings.sandbox.map(Sandbox::of_parts),
            ..Self::new()
        }
    }
}
