import API
import Foundation
import HTTPTypes

// Space, promotion, differences.

extension RouteTable {
    static func history(_ services: NodeServices) -> [Route] {
        let inventory = services.inventory
        return [
            Route(
                method: .post, path: "/v1/space", operation: "measureSpace",
                summary: "What deleting all of the given snapshots and volumes would free. Changes nothing.",
                access: .administrator, body: "SpaceRequest",
                answer: answer(200, "The answer, exact as of now.", .named("SpaceInfo")),
                failures: [404: "snapshotNotFound, volumeNotFound", 409: "changing"]
            ) { request in
                let body = try request.decode(SpaceRequest.self, knownFields: fields("SpaceRequest"))
                return try .value(try await inventory.space(body))
            },
            Route(
                method: .post, path: "/v1/clones/{name}/promote", operation: "promoteClone",
                summary: "Makes a clone the owner of the snapshots it stands on; the former owner becomes a clone.",
                access: .administrator,
                answer: answer(200, "What changed hands.", .named("PromoteResult")),
                failures: [404: "volumeNotFound, cloneNotFound", 409: "snapshotInUse, volumeBusy"]
            ) { request in try .value(try await inventory.promote(try request.parameter("name"))) },
        ]
    }
}
