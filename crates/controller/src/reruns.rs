//! Running the job of an execution again: the job as its catalogue has it now, with the arguments of then. Those never leave the controller,
//! so that sensitive ones need not be known to whoever asks.

use std::sync::Arc;

use octavius_core::argument::{self, Arguments};
use octavius_core::{Execution, ExecutionId, JobDefinition, Principal, Role, TraceContext};
use octavius_proto::v1;
use octavius_proto::{Fault, reason};
use tonic::Code;

use crate::audit::Act;
use crate::engine::EngineError;
use crate::executions::{Asked, Executions, unfit_arguments};
use crate::fault;

/// What is to be repeated.
#[derive(Debug, Clone)]
pub(crate) struct Again {
    /// The execution.
    pub(crate) source: ExecutionId,
    /// The job as it was then.
    then: Arc<JobDefinition>,
}

impl Again {
    /// The arguments of then, checked against the job as it is now, with its defaults where none was given.
    pub(crate) fn resolve(&self, now: &JobDefinition, given: &Arguments) -> Result<Arguments, Fault> {
        let mut given = given.clone();
        // An argument that the job does not take any more stands in the way only where its value was chosen.
        given.retain(|name, value| now.argument(name).is_some() || self.default_of(name) != Some(value));
        let exposed: Vec<&str> = given.keys().map(String::as_str).filter(|name| self.would_be_exposed(name, now)).collect();
        let resolved = argument::resolve(now, &given);
        // What would be shown now was not to be seen then: neither is what is wrong with it.
        let wrong = resolved.as_ref().err().into_iter().flatten();
        let wrong = wrong.filter(|error| error.name().is_none_or(|name| !exposed.contains(&name)));
        let wrong = wrong.map(|error| (error.name().unwrap_or_default().to_owned(), error.to_string()));
        let told = exposed.iter().map(|name| {
            let problem = "it was sensitive, and is not any more: its value would be shown; execute the job with a value for it";
            ((*name).to_owned(), format!("argument `{name}`: {problem}"))
        });
        let errors: Vec<_> = told.chain(wrong).collect();
        match resolved {
            Ok(arguments) if errors.is_empty() => Ok(arguments),
            _ => Err(unfit_arguments(now.name.as_str(), errors)),
        }
    }

    fn default_of(&self, name: &str) -> Option<&String> {
        self.then.argument(name)?.default.as_ref().map(|default| &default.0)
    }

    fn would_be_exposed(&self, name: &str, now: &JobDefinition) -> bool {
        let sensitive = |job: &JobDefinition| job.argument(name).is_some_and(|argument| argument.sensitive);
        sensitive(&self.then) && !sensitive(now)
    }
}

impl Executions {
    /// Runs the job of an execution again.
    pub(crate) async fn rerun(
        &self,
        act: Act,
        request: v1::RerunExecutionRequest,
        trace: Option<Box<TraceContext>>,
    ) -> Result<ExecutionId, Fault> {
        let principal = act.principal()?;
        let repeated = self.repeated(principal, &request).await?;
        let v1::RerunExecutionRequest { id, source, idempotency_key, timeout } = request;
        let text = repeated.map_or(source, |source| source.to_string());
        let source = self.find(principal, &text).await?;
        let arguments = self.engine.arguments(&source).await.map_err(fault::from_engine)?;
        let then = self.job_of(&source).await?;
        may_repeat(principal, &source, &then, &arguments)?;
        let arguments = arguments.into_iter().collect();
        let request = v1::ExecuteRequest { id, job: source.job.to_string(), arguments, timeout, idempotency_key };
        let again = Some(Again { source: source.id, then });
        self.run(Asked::new(act, request, again, self.engine.clock().now())?.in_trace(trace)).await
    }

    /// The source of an execution that this call has made already, where it is the call repeated: what `@latest` and the end of an id mean
    /// may be another by now.
    async fn repeated(&self, principal: &Principal, request: &v1::RerunExecutionRequest) -> Result<Option<ExecutionId>, Fault> {
        let proposed = octavius_proto::execution_id("id", &request.id)?;
        let made = match self.made_under(principal, &request.idempotency_key).await? {
            Some(made) => made,
            None => proposed,
        };
        let known = match self.engine.get(made).await {
            Ok(known) => known,
            Err(EngineError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(fault::from_engine(error)),
        };
        let means = |of: &ExecutionId| request.source == "@latest" || of.to_string().ends_with(&request.source);
        Ok(known.rerun_of.filter(|_| known.user == principal.user).filter(means))
    }
}

/// Whoever may run a job chooses its arguments, and sensitive ones are for him alone: nobody runs it with another's, but an admin.
fn may_repeat(principal: &Principal, source: &Execution, then: &JobDefinition, arguments: &Arguments) -> Result<(), Fault> {
    if principal.role == Role::Admin || principal.user == source.user {
        return Ok(());
    }
    let sensitive = then.env_vars.args.iter().filter(|argument| argument.sensitive && arguments.contains_key(&argument.name));
    let names: Vec<&str> = sensitive.map(|argument| argument.name.as_str()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let message = format!(
        "execution {} is {}'s and has sensitive arguments ({}): only they and admins may run it again; execute the job with your own",
        source.id,
        source.user,
        names.join(", ")
    );
    Err(Fault::new(Code::PermissionDenied, reason::NOT_PERMITTED, message).with("arguments", names.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(args: &str) -> JobDefinition {
        serde_json::from_str(&format!(r#"{{"name":"refund","env_vars":{{"args":{args}}}}}"#)).unwrap()
    }

    fn given(pairs: &[(&str, &str)]) -> Arguments {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn again(then: &str) -> Again {
        Again { source: ExecutionId::from_bits(1), then: Arc::new(job(then)) }
    }

    fn problems(fault: &Fault) -> Vec<&str> {
        fault.violations.iter().map(|violation| violation.description.as_str()).collect()
    }

    #[test]
    fn the_arguments_of_then_are_held_to_the_job_of_now() {
        let again = again(r#"[{"name":"order"},{"name":"count","type":"integer","default":1},{"name":"old","default":"x"}]"#);
        let then = given(&[("order", "A-1"), ("count", "1"), ("old", "x")]);
        let now = job(
            r#"[{"name":"order","pattern":"A-[0-9]+"},{"name":"count","type":"integer","default":2},{"name":"new","default":"n"}]"#,
        );
        // What was left to its default and is not taken any more does no harm; what was, stays.
        assert_eq!(again.resolve(&now, &then).unwrap(), given(&[("order", "A-1"), ("count", "1"), ("new", "n")]));
        let chosen = given(&[("order", "B"), ("count", "1"), ("old", "y")]);
        let fault = again.resolve(&now, &chosen).unwrap_err();
        assert_eq!(
            problems(&fault),
            [
                "argument `order`: \"B\" does not match A-[0-9]+",
                "argument `old` is not known to job `refund`; it takes `order`, `count`, `new`"
            ]
        );
        let stricter = job(r#"[{"name":"order"},{"name":"count"},{"name":"who","required":true}]"#);
        assert_eq!(problems(&again.resolve(&stricter, &then).unwrap_err()), ["argument `who` is required"]);
    }

    /// Else a job's next revision would show what was entered as a secret.
    #[test]
    fn what_was_sensitive_is_not_shown_by_running_it_again() {
        let again = again(r#"[{"name":"pin","sensitive":true}]"#);
        let then = given(&[("pin", "hunter2")]);
        assert_eq!(again.resolve(&job(r#"[{"name":"pin","sensitive":true}]"#), &then).unwrap(), then);
        for now in [r#"[{"name":"pin"}]"#, r#"[{"name":"pin","type":"integer"}]"#, r#"[{"name":"pim"}]"#] {
            let fault = again.resolve(&job(now), &then).unwrap_err();
            assert_eq!(fault.violations.len(), 1, "{fault:?}");
            assert!(problems(&fault)[0].contains("was sensitive") && !format!("{fault:?}").contains("hunter"), "{fault:?}");
        }
        let fault = again.resolve(&job(r#"[{"name":"pin","sensitive":true,"type":"integer"}]"#), &then).unwrap_err();
        assert!(!format!("{fault:?}").contains("hunter"), "{fault:?}");
    }
}
