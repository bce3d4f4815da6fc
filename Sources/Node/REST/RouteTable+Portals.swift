import API
import HTTPTypes

extension RouteTable {
    static func portals(_ services: NodeServices) -> [Route] {
        let inventory = services.inventory
        return [
            Route(
                method: .get, path: "/v1/portal-groups", operation: "listPortalGroups",
                summary: "The portal groups and how they reach the volumes.", access: .administrator,
                answer: answer(200, "The groups, by number.", .array(.named("PortalGroupInfo")))
            ) { _ in try .value(inventory.portalGroups()) },
            Route(
                method: .post, path: "/v1/portal-groups/{group}", operation: "setPortalGroup",
                summary: "Changes how a group's portals reach the volumes (ALUA); hosts learn of it at once.",
                access: .administrator, body: "PortalGroupRequest",
                answer: answer(200, "The group.", .named("PortalGroupInfo")), failures: [404: "portalGroupNotFound"]
            ) { request in
                let body = try request.decode(PortalGroupRequest.self, knownFields: fields("PortalGroupRequest"))
                return try .value(try await inventory.setPortalGroup(try request.parameter("group"), body))
            },
        ]
    }
}
