//! Who may do what: roles, permissions, and the principal behind a call.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::CatalogName;

/// What someone is to the system. Each role has a fixed set of permissions, see [`Role::may`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sees jobs and executions.
    Viewer,
    /// Sees and runs jobs.
    User,
    /// Sees and runs jobs, and applies catalogues: a CI job.
    Applier,
    /// Does everything that people do.
    Admin,
    /// An executor daemon, with a token of its own.
    Executor,
    /// The bearer of a registration token: may register executors, nothing else.
    Registration,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 6] = [Self::Viewer, Self::User, Self::Applier, Self::Admin, Self::Executor, Self::Registration];

    /// The role as files and output write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::User => "user",
            Self::Applier => "applier",
            Self::Admin => "admin",
            Self::Executor => "executor",
            Self::Registration => "registration",
        }
    }

    /// The role of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }

    /// Whether the role has the permission.
    #[must_use]
    pub const fn may(self, permission: Permission) -> bool {
        use Permission as P;
        match permission {
            P::Anyone => true,
            P::SignIn | P::ReadCatalog | P::ReadExecutions | P::ReadExecutors => {
                matches!(self, Self::Viewer | Self::User | Self::Applier | Self::Admin)
            }
            P::Execute => matches!(self, Self::User | Self::Applier | Self::Admin),
            P::Apply => matches!(self, Self::Applier | Self::Admin),
            P::Administer => matches!(self, Self::Admin),
            P::RunExecutions => matches!(self, Self::Executor),
            P::RegisterExecutor => matches!(self, Self::Registration),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a call needs. The controller's table names one for each RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// A valid token of any kind.
    Anyone,
    /// Sign in and out in a browser.
    SignIn,
    /// See jobs, manifests and revisions.
    ReadCatalog,
    /// See executions and their logs.
    ReadExecutions,
    /// See executors.
    ReadExecutors,
    /// Run and cancel jobs, and approve or reject what waits for that.
    Execute,
    /// Change a catalogue.
    Apply,
    /// Make and revoke tokens; drain and revoke executors; pause jobs; make backups.
    Administer,
    /// Hold a session, report on executions, write their logs.
    RunExecutions,
    /// Register an executor.
    RegisterExecutor,
}

impl Permission {
    /// Every permission.
    pub const ALL: [Self; 10] = [
        Self::Anyone,
        Self::SignIn,
        Self::ReadCatalog,
        Self::ReadExecutions,
        Self::ReadExecutors,
        Self::Execute,
        Self::Apply,
        Self::Administer,
        Self::RunExecutions,
        Self::RegisterExecutor,
    ];
}

/// Who makes a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The token's id, or what stands for it with other kinds of credential.
    pub token_id: String,
    /// The user's name; an executor's id.
    pub user: String,
    /// What they are.
    pub role: Role,
    /// Their groups.
    pub groups: Vec<String>,
    /// The catalogues that an applier changes; empty for every one.
    pub catalogs: Vec<CatalogName>,
}

impl Principal {
    /// Someone of this role, without groups, who is bound to no catalogue.
    #[must_use]
    pub fn new(token_id: &str, user: &str, role: Role) -> Self {
        Self { token_id: token_id.to_owned(), user: user.to_owned(), role, groups: Vec::new(), catalogs: Vec::new() }
    }

    /// Whether a job for `authorized_groups` is theirs to see and run, and what became of it theirs to read. Admins see every job. Who only
    /// applies a catalogue reads it as a whole, and its jobs' executions no more than others do.
    #[must_use]
    pub fn may_use(&self, authorized_groups: &[String]) -> bool {
        authorized_groups.is_empty()
            || self.role == Role::Admin
            || authorized_groups.iter().any(|group| self.groups.contains(group))
    }

    /// Whether a catalogue is theirs to read as a whole and to change.
    #[must_use]
    pub fn may_apply(&self, catalog: &CatalogName) -> bool {
        self.role.may(Permission::Apply) && (self.catalogs.is_empty() || self.catalogs.contains(catalog))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole table, written out once more: a change of it should be a decision, not an accident.
    #[test]
    fn each_role_has_exactly_these_permissions() {
        use Permission as P;
        let expected: [(Role, &[P]); 6] = [
            (Role::Viewer, &[P::Anyone, P::SignIn, P::ReadCatalog, P::ReadExecutions, P::ReadExecutors]),
            (Role::User, &[P::Anyone, P::SignIn, P::ReadCatalog, P::ReadExecutions, P::ReadExecutors, P::Execute]),
            (Role::Applier, &[P::Anyone, P::SignIn, P::ReadCatalog, P::ReadExecutions, P::ReadExecutors, P::Execute, P::Apply]),
            (
                Role::Admin,
                &[P::Anyone, P::SignIn, P::ReadCatalog, P::ReadExecutions, P::ReadExecutors, P::Execute, P::Apply, P::Administer],
            ),
            (Role::Executor, &[P::Anyone, P::RunExecutions]),
            (Role::Registration, &[P::Anyone, P::RegisterExecutor]),
        ];
        for (role, permissions) in expected {
            for permission in Permission::ALL {
                assert_eq!(role.may(permission), permissions.contains(&permission), "{role} {permission:?}");
            }
        }
    }

    #[test]
    fn groups_decide_who_sees_a_job() {
        let principal = |role, groups: &[&str]| Principal {
            token_id: "t".into(),
            user: "ann".into(),
            role,
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            catalogs: Vec::new(),
        };
        let support = ["support".to_owned()];
        assert!(principal(Role::User, &[]).may_use(&[]));
        assert!(principal(Role::User, &["ops", "support"]).may_use(&support));
        assert!(!principal(Role::User, &["ops"]).may_use(&support));
        assert!(principal(Role::Admin, &[]).may_use(&support));
        assert!(!principal(Role::Applier, &["ci"]).may_use(&support));
    }

    #[test]
    fn an_applier_changes_the_catalogues_that_it_is_for() {
        let (one, other): (CatalogName, CatalogName) = ("one".parse().unwrap(), "other".parse().unwrap());
        for role in Role::ALL {
            let anywhere = Principal::new("t", "ci", role);
            let bound = Principal { catalogs: vec![one.clone()], ..anywhere.clone() };
            let applies = role.may(Permission::Apply);
            assert_eq!((anywhere.may_apply(&one), anywhere.may_apply(&other)), (applies, applies), "{role}");
            assert_eq!((bound.may_apply(&one), bound.may_apply(&other)), (applies, false), "{role}");
        }
    }
}
