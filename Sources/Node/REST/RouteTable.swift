import API
import Foundation
import HTTPTypes

/// Every route of the API. What they do is in the rooms that they call; docs/api.md explains them to people.
struct RouteTable: Sendable {
    let services: NodeServices
    let routes: [Route]

    init(_ services: NodeServices) {
        self.services = services
        var routes =
            Self.node(services) + Self.pool(services) + Self.volumes(services) + Self.targets(services)
            + Self.portals(services) + Self.snapshots(services) + Self.clones(services) + Self.sessions(services)
            + Self.agents(services)
            + Self.guests(services)
            + Self.jobs(services) + Self.history(services) + Self.streams(services) + [Self.openAPI]
        let document = OpenAPIDocument.make(routes: routes)
        routes[routes.count - 1].handle = { _ in .text(contentType: "application/json", document) }
        self.routes = routes
    }

    /// The fields that a body may have.
    static func fields(_ schema: String) -> Set<String> {
        Set(ObjectSchemas.byName[schema]?.fields.map(\.name) ?? [])
    }

    static func answer(_ status: Int, _ summary: String, _ schema: Schema?) -> Route.Answer {
        Route.Answer(status: status, summary: summary, contentType: "application/json", schema: schema)
    }

    static let noContent = Route.Answer(status: 204, summary: "Done.", contentType: "application/json", schema: nil)

    // MARK: The node

    private static func node(_ services: NodeServices) -> [Route] {
        [
            Route(
                method: .get, path: "/health", operation: "getHealth",
                summary: "Whether the node works; status 503 where it does not.", access: .open,
                answer: answer(200, "It works.", .named("HealthInfo")), failures: [503: "A check fails."]
            ) { _ in
                let health = await services.health()
                return try .value(health, status: health.status == "ok" ? 200 : 503)
            },
            Route(
                method: .get, path: "/metrics", operation: "getMetrics", summary: "Metrics for Prometheus.",
                access: .loopbackOrAdministrator,
                answer: Route.Answer(
                    status: 200, summary: "Text in the exposition format.", contentType: MetricsText.contentType,
                    schema: .string)
            ) { _ in .text(contentType: MetricsText.contentType, try await services.metricsText()) },
            Route(
                method: .get, path: "/v1/status", operation: "getStatus", summary: "The node at a glance.",
                access: .administrator, answer: answer(200, "The status.", .named("NodeStatus"))
            ) { _ in try .value(try await services.status()) },
        ]
    }

    /// Its answer is made of all routes, itself included, once they are there.
    private static let openAPI = Route(
        method: .get, path: "/v1/openapi.json", operation: "getOpenAPI", summary: "This document.", access: .open,
        answer: Route.Answer(
            status: 200, summary: "An OpenAPI 3.1 document.", contentType: "application/json", schema: .map(.string))
    ) { _ in .empty }

    // MARK: Volumes

    private static func volumes(_ services: NodeServices) -> [Route] {
        let inventory = services.inventory
        return [
            Route(
                method: .get, path: "/v1/volumes", operation: "listVolumes", summary: "All volumes, clones included.",
                access: .administrator, answer: answer(200, "The volumes, by name.", .array(.named("VolumeInfo")))
            ) { _ in try .value(try await inventory.volumes()) },
            Route(
                method: .post, path: "/v1/volumes", operation: "createVolume",
                summary: "Makes a thin volume and, by default, a target that exports it as LUN 0.",
                access: .administrator, body: "VolumeCreateRequest",
                answer: answer(201, "The new volume.", .named("VolumeInfo")), failures: [409: "volumeExists"]
            ) { request in
                let body = try request.decode(VolumeCreateRequest.self, knownFields: fields("VolumeCreateRequest"))
                return try .value(try await inventory.createVolume(body), status: 201)
            },
            Route(
                method: .get, path: "/v1/volumes/{name}", operation: "getVolume", summary: "One volume.",
                access: .administrator, answer: answer(200, "The volume.", .named("VolumeInfo")),
                failures: [404: "volumeNotFound"]
            ) { request in
                var volume = try await inventory.withSpace(
                    try await inventory.volume(try request.parameter("name")))
                volume.uses = await services.uses(ofVolume: volume.name)
                return try .value(volume)
            },
            Route(
                method: .delete, path: "/v1/volumes/{name}", operation: "deleteVolume",
                summary: "Deletes a volume and its target; refused while an initiator has a session.",
                access: .administrator,
                query: [.init(name: "withSnapshots", summary: "Delete its snapshots, too.", schema: .boolean)],
                answer: noContent,
                failures: [404: "volumeNotFound", 409: "volumeInUse, volumeHasSnapshots, volumeBusy"]
            ) { request in
                let withSnapshots = try request.flag("withSnapshots")
                try await inventory.deleteVolume(try request.parameter("name"), withSnapshots: withSnapshots)
                return .empty
            },
            Route(
                method: .post, path: "/v1/volumes/{name}/resize", operation: "resizeVolume",
                summary: "Grows a volume; initiators are told.", access: .administrator, body: "VolumeResizeRequest",
                answer: answer(200, "The volume.", .named("VolumeInfo")),
                failures: [400: "shrinkRefused", 404: "volumeNotFound"]
            ) { request in
                let body = try request.decode(VolumeResizeRequest.self, knownFields: fields("VolumeResizeRequest"))
                return try .value(try await inventory.resizeVolume(try request.parameter("name"), body))
            },
            Route(
                method: .post, path: "/v1/reverts", operation: "createRevert",
                summary: "Puts volumes back to what a snapshot holds, and keeps what they hold now as a snapshot.",
                access: .administrator, body: "RevertRequest",
                answer: answer(202, "The job; its result is a RevertResult.", .named("JobInfo")),
                failures: [404: "volumeNotFound, snapshotNotFound", 409: "volumeInUse"]
            ) { request in
                let body = try request.decode(RevertRequest.self, knownFields: fields("RevertRequest"))
                return try .value(try await services.submitRevert(body), status: 202)
            },
        ]
    }

    // MARK: Targets

    private static func targets(_ services: NodeServices) -> [Route] {
        let inventory = services.inventory
        return [
            Route(
                method: .get, path: "/v1/targets", operation: "listTargets", summary: "All targets.",
                access: .administrator, answer: answer(200, "The targets, by name.", .array(.named("TargetInfo")))
            ) { _ in try .value(try await inventory.targets()) },
            Route(
                method: .get, path: "/v1/targets/{iqn}", operation: "getTarget", summary: "One target.",
                access: .administrator, answer: answer(200, "The target.", .named("TargetInfo")),
                failures: [404: "targetNotFound"]
            ) { request in try .value(try await inventory.target(try request.parameter("iqn"))) },
            Route(
                method: .post, path: "/v1/targets/{iqn}/allow", operation: "allowInitiator",
                summary: "Lets an initiator log in, with CHAP where a user and secret are given.",
                access: .administrator, body: "TargetAllowRequest",
                answer: answer(200, "The target.", .named("TargetInfo")), failures: [404: "targetNotFound"]
            ) { request in
                let body = try request.decode(TargetAllowRequest.self, knownFields: fields("TargetAllowRequest"))
                return try .value(try await inventory.allow(try request.parameter("iqn"), body))
            },
            Route(
                method: .post, path: "/v1/targets/{iqn}/deny", operation: "denyInitiator",
                summary: "Takes a rule back and ends the sessions that stood on it.", access: .administrator,
                body: "TargetDenyRequest", answer: answer(200, "The target.", .named("TargetInfo")),
                failures: [404: "targetNotFound, ruleNotFound"]
            ) { request in
                let body = try request.decode(TargetDenyRequest.self, knownFields: fields("TargetDenyRequest"))
                return try .value(try await inventory.deny(try request.parameter("iqn"), body))
            },
        ]
    }

    // MARK: Clones

    private static func clones(_ services: NodeServices) -> [Route] {
        let inventory = services.inventory
        return [
            Route(
                method: .get, path: "/v1/clones", operation: "listClones", summary: "The volumes that are clones.",
                access: .administrator, answer: answer(200, "The clones, by name.", .array(.named("VolumeInfo")))
            ) { _ in try .value(try await inventory.clones()) },
            Route(
                method: .post, path: "/v1/clones", operation: "createClone",
                summary: "Makes a writable volume, with an identity of its own, of a snapshot's member.",
                access: .administrator, body: "CloneRequest",
                answer: answer(201, "The new volume.", .named("VolumeInfo")),
                failures: [404: "snapshotNotFound, memberNotFound", 409: "volumeExists"]
            ) { request in
                let body = try request.decode(CloneRequest.self, knownFields: fields("CloneRequest"))
                return try .value(try await inventory.createClone(body), status: 201)
            },
            Route(
                method: .delete, path: "/v1/clones/{name}", operation: "deleteClone",
                summary: "Deletes a volume that is a clone, as DELETE /v1/volumes/{name} does.",
                access: .administrator,
                query: [.init(name: "withSnapshots", summary: "Delete its snapshots, too.", schema: .boolean)],
                answer: noContent,
                failures: [404: "volumeNotFound, cloneNotFound", 409: "volumeInUse, volumeHasSnapshots, volumeBusy"]
            ) { request in
                let withSnapshots = try request.flag("withSnapshots")
                try await inventory.deleteVolume(
                    try request.parameter("name"), withSnapshots: withSnapshots, onlyClones: true)
                return .empty
            },
        ]
    }
}
