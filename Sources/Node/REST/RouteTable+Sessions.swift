import API
import Foundation
import HTTPTypes

/// Who is logged in at the iSCSI target, and who may ask it for its targets.
extension RouteTable {
    static func sessions(_ services: NodeServices) -> [Route] {
        let inventory = services.inventory
        return [
            Route(
                method: .get, path: "/v1/sessions", operation: "listSessions",
                summary: "All iSCSI sessions, those for discovery included.", access: .administrator,
                answer: answer(200, "The sessions, oldest first.", .array(.named("SessionInfo")))
            ) { _ in try .value(inventory.sessions()) },
            Route(
                method: .delete, path: "/v1/sessions/{id}", operation: "dropSession",
                summary: "Ends a session; its initiator may log in again unless it is denied.",
                access: .administrator, answer: noContent, failures: [404: "sessionNotFound"]
            ) { request in
                try inventory.dropSession(try request.parameter("id"))
                return .empty
            },
            Route(
                method: .get, path: "/v1/discovery", operation: "getDiscovery",
                summary: "Who may ask which targets there are.", access: .administrator,
                answer: answer(200, "The rules.", .named("DiscoveryInfo"))
            ) { _ in try .value(try await inventory.discovery()) },
            Route(
                method: .post, path: "/v1/discovery/allow", operation: "allowDiscovery",
                summary: "Lets an initiator discover targets, with CHAP where a user and secret are given.",
                access: .administrator, body: "TargetAllowRequest",
                answer: answer(200, "The rules.", .named("DiscoveryInfo"))
            ) { request in
                let body = try request.decode(TargetAllowRequest.self, knownFields: fields("TargetAllowRequest"))
                return try .value(try await inventory.allowDiscovery(body))
            },
            Route(
                method: .post, path: "/v1/discovery/deny", operation: "denyDiscovery",
                summary: "Takes a rule for discovery back; without any rule discovery is open.",
                access: .administrator, body: "TargetDenyRequest",
                answer: answer(200, "The rules.", .named("DiscoveryInfo")), failures: [404: "ruleNotFound"]
            ) { request in
                let body = try request.decode(TargetDenyRequest.self, knownFields: fields("TargetDenyRequest"))
                return try .value(try await inventory.denyDiscovery(body))
            },
        ]
    }
}
