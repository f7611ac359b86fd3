//! Objects of the API server as those see them who only know their key.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::kubernetes::{
    AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy, EgressIP, EndpointSlice, IPBlock,
    IPPool, Key, Kind, Namespace, Network, NetworkAttachmentDefinition, NetworkPolicy, Node, NodeConfig, Pod,
    Service,
};

/// Who writes, as the API server keeps account of fields.
pub(super) const WRITER: &str = "penstock-agent";
/// The condition that says whether a policy is honoured.
pub(super) const ACCEPTED: &str = "PenstockAccepted";

/// Whether the status of objects of a kind says if they are honoured.
pub(crate) fn is_answered(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::ClusterNetworkPolicy
            | Kind::AdminNetworkPolicy
            | Kind::BaselineAdminNetworkPolicy
            | Kind::EgressIP
            | Kind::IPPool
    )
}

fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::Node => ApiResource::erase::<Node>(&()),
        Kind::Namespace => ApiResource::erase::<Namespace>(&()),
        Kind::Pod => ApiResource::erase::<Pod>(&()),
        Kind::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
        Kind::ClusterNetworkPolicy => ApiResource::erase::<ClusterNetworkPolicy>(&()),
        Kind::AdminNetworkPolicy => ApiResource::erase::<AdminNetworkPolicy>(&()),
        Kind::BaselineAdminNetworkPolicy => ApiResource::erase::<BaselineAdminNetworkPolicy>(&()),
        Kind::Service => ApiResource::erase::<Service>(&()),
        Kind::EndpointSlice => ApiResource::erase::<EndpointSlice>(&()),
        Kind::NetworkAttachmentDefinition => ApiResource::erase::<NetworkAttachmentDefinition>(&()),
        Kind::Network => ApiResource::erase::<Network>(&()),
        Kind::IPPool => ApiResource::erase::<IPPool>(&()),
        Kind::IPBlock => ApiResource::erase::<IPBlock>(&()),
        Kind::EgressIP => ApiResource::erase::<EgressIP>(&()),
        Kind::NodeConfig => ApiResource::erase::<NodeConfig>(&()),
    }
}

fn api(client: &Client, key: &Key) -> (Api<DynamicObject>, ApiResource) {
    let resource = resource(key.kind);
    let api = if key.namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), &key.namespace, &resource)
    };
    (api, resource)
}

/// What an event names an object by; `None` when it is gone.
pub(super) async fn reference(client: &Client, key: &Key) -> Result<Option<ObjectReference>, kube::Error> {
    let (api, resource) = api(client, key);
    let Some(found) = api.get_metadata_opt(&key.name).await? else { return Ok(None) };
    Ok(Some(ObjectReference {
        api_version: Some(resource.api_version),
        kind: Some(resource.kind),
        namespace: found.metadata.namespace,
        name: found.metadata.name,
        uid: found.metadata.uid,
        resource_version: found.metadata.resource_version,
        field_path: None,
    }))
}

/// Writes into an object's status whether it is honoured, unless it says so already.
pub(super) async fn answer(client: &Client, key: &Key, problems: &[String]) -> Result<(), kube::Error> {
    let (api, resource) = api(client, key);
    let Some(found) = api.get_opt(&key.name).await? else { return Ok(()) };
    let status = found.data.get("status").cloned().unwrap_or_default();
    let Some(status) = answered(key.kind, &status, problems, found.metadata.generation) else {
        return Ok(());
    };
    let applied = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": found.name_any()},
        "status": status,
    });
    api.patch_status(&key.name, &PatchParams::apply(WRITER).force(), &Patch::Apply(applied)).await?;
    Ok(())
}

/// The part of a status that is ours, if it has to change.
fn answered(kind: Kind, status: &Value, problems: &[String], generation: Option<i64>) -> Option<Value> {
    let message = problems.join("; ");
    if matches!(kind, Kind::EgressIP | Kind::IPPool) {
        let new = if problems.is_empty() {
            json!({"honoured": true})
        } else {
            json!({"honoured": false, "message": message})
        };
        return (*status != new).then_some(new);
    }
    let (word, reason) = if problems.is_empty() { ("True", "Honoured") } else { ("False", "NotHonoured") };
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let old = conditions.iter().find(|condition| condition["type"] == ACCEPTED);
    let same = old.is_some_and(|old| {
        old["status"] == word && old["message"] == *message && old["observedGeneration"] == json!(generation)
    });
    if same {
        return None;
    }
    let since = old.filter(|old| old["status"] == word).map(|old| old["lastTransitionTime"].clone());
    let since = since.unwrap_or_else(|| json!(k8s_openapi::jiff::Timestamp::now()));
    let condition = json!({
        "type": ACCEPTED, "status": word, "reason": reason, "message": message,
        "lastTransitionTime": since, "observedGeneration": generation,
    });
    Some(json!({"conditions": [condition]}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_says_so_already_is_not_written_again() {
        let policy = Kind::ClusterNetworkPolicy;
        let first = answered(policy, &Value::Null, &[], Some(1)).unwrap();
        assert_eq!(first["conditions"][0]["status"], "True");
        assert_eq!(answered(policy, &first, &[], Some(1)), None);
        let second = answered(policy, &first, &[], Some(2)).unwrap();
        assert_eq!(
            second["conditions"][0]["lastTransitionTime"],
            first["conditions"][0]["lastTransitionTime"]
        );
        let refused = answered(policy, &second, &["no such protocol".into()], Some(2)).unwrap();
        assert_eq!(refused["conditions"][0]["reason"], "NotHonoured");
        assert_eq!(refused["conditions"][0]["message"], "no such protocol");
        let egress = answered(Kind::EgressIP, &Value::Null, &["not here".into()], None).unwrap();
        assert_eq!(egress, json!({"honoured": false, "message": "not here"}));
        assert_eq!(answered(Kind::EgressIP, &egress, &["not here".into()], None), None);
    }
}
