import API
import BlockStore
import Foundation
import HTTPTypes

// Snapshots, agents and jobs.

extension RouteTable {
    static func snapshots(_ services: NodeServices) -> [Route] {
        let inventory = services.inventory
        return [
            Route(
                method: .get, path: "/v1/snapshots", operation: "listSnapshots",
                summary: "Snapshots without their evidence, oldest first.", access: .administrator,
                query: [
                    .init(name: "volume", summary: "Only those that this volume is a member of.", schema: .string),
                    .init(name: "space", summary: "With what each of them holds alone.", schema: .boolean),
                ],
                answer: answer(200, "The snapshots.", .array(.named("SnapshotInfo"))),
                failures: [404: "volumeNotFound"]
            ) { request in
                let withSpace = try request.flag("space")
                let snapshots = try await inventory.snapshots(of: request.query["volume"])
                return try .value(withSpace ? try await inventory.withSpace(snapshots) : snapshots)
            },
            Route(
                method: .post, path: "/v1/snapshots", operation: "createSnapshot",
                summary: "Takes one snapshot of one or several volumes in one cut, at the consistency asked for.",
                access: .administrator, body: "SnapshotCreateRequest",
                answer: answer(202, "The job; its result is a SnapshotInfo.", .named("JobInfo")),
                failures: [404: "volumeNotFound", 409: "nameTaken"]
            ) { request in
                let body = try request.decode(SnapshotCreateRequest.self, knownFields: fields("SnapshotCreateRequest"))
                return try .value(try await services.submitSnapshot(body), status: 202)
            },
            Route(
                method: .post, path: "/v1/preflight", operation: "previewSnapshot",
                summary:
                    "Says what a snapshot would do now: its members, what stands in the way, how long it is quiet.",
                access: .administrator, body: "SnapshotCreateRequest",
                answer: answer(200, "The preview; nothing was touched.", .named("SnapshotPreview")),
                failures: [404: "volumeNotFound", 409: "nameTaken"]
            ) { request in
                let body = try request.decode(SnapshotCreateRequest.self, knownFields: fields("SnapshotCreateRequest"))
                return try .value(try await services.previewSnapshot(body))
            },
            Route(
                method: .get, path: "/v1/snapshots/{idOrName}", operation: "getSnapshot",
                summary: "One snapshot with its evidence.", access: .administrator,
                answer: answer(200, "The snapshot.", .named("SnapshotInfo")), failures: [404: "snapshotNotFound"]
            ) { request in
                let snapshot = try await inventory.snapshot(try request.parameter("idOrName"))
                return try .value(try await inventory.withSpace([snapshot])[0])
            },
            Route(
                method: .delete, path: "/v1/snapshots/{idOrName}", operation: "deleteSnapshot",
                summary: "Deletes a snapshot and its exports; its space is reclaimed in the background.",
                access: .administrator, answer: noContent,
                failures: [404: "snapshotNotFound", 409: "snapshotHasClones, snapshotInUse, volumeBusy"]
            ) { request in
                try await inventory.deleteSnapshot(try request.parameter("idOrName"))
                return .empty
            },
            Route(
                method: .post, path: "/v1/snapshots/{idOrName}/exports", operation: "exportSnapshot",
                summary: "Shows a member of a snapshot, read-only, in a target that only one initiator may reach.",
                access: .administrator, body: "SnapshotExportRequest",
                answer: answer(201, "The export.", .named("ExportInfo")),
                failures: [404: "snapshotNotFound, memberNotFound", 409: "tooManyExports"]
            ) { request in
                let body = try request.decode(SnapshotExportRequest.self, knownFields: fields("SnapshotExportRequest"))
                let export = try await inventory.exportSnapshot(try request.parameter("idOrName"), body)
                return try .value(export, status: 201)
            },
            Route(
                method: .delete, path: "/v1/snapshots/{idOrName}/exports", operation: "removeSnapshotExports",
                summary: "Removes one export of a snapshot, or all; sessions end.", access: .administrator,
                query: [.init(name: "iqn", summary: "Only this export.", schema: .string)], answer: noContent,
                failures: [404: "snapshotNotFound"]
            ) { request in
                try await inventory.removeExports(try request.parameter("idOrName"), iqn: request.query["iqn"])
                return .empty
            },
        ]
    }

    static func agents(_ services: NodeServices) -> [Route] {
        let agents = services.agents
        return [
            Route(
                method: .get, path: "/v1/agents", operation: "listAgents", summary: "All agents.",
                access: .administrator, answer: answer(200, "The agents, by name.", .array(.named("AgentInfo")))
            ) { _ in try .value(try await agents.agents()) },
            Route(
                method: .get, path: "/v1/agents/{name}", operation: "getAgent",
                summary: "One agent, looked at now, with what it protects on the volumes.", access: .administrator,
                answer: answer(200, "The agent.", .named("AgentInfo")), failures: [404: "agentNotFound"]
            ) { request in
                let volumes = try await services.inventory.volumeRecords()
                let references = volumes.map { VolumeReference(name: $0.name, naa: $0.naa.description) }
                let located = services.inventory.registry.located(references)
                return try .value(try await agents.agent(try request.parameter("name"), volumes: located))
            },
            Route(
                method: .delete, path: "/v1/agents/{name}", operation: "removeAgent",
                summary: "Forgets an agent; the node calls it no more.", access: .administrator, answer: noContent,
                failures: [404: "agentNotFound"]
            ) { request in
                try await agents.remove(try request.parameter("name"))
                return .empty
            },
            Route(
                method: .post, path: "/v1/agents/tokens", operation: "createAgentToken",
                summary: "Makes a token with which an agent enrols once.", access: .administrator,
                body: "AgentTokenRequest", answer: answer(201, "The token.", .named("AgentToken"))
            ) { request in
                let body = try request.decode(AgentTokenRequest.self, knownFields: fields("AgentTokenRequest"))
                return try .value(try await agents.makeToken(body), status: 201)
            },
            Route(
                method: .post, path: "/v1/enroll", operation: "enrollAgent",
                summary: "Enrols the agent that the token was made for, and signs its certificate.",
                access: .enrolment, body: "EnrollRequest",
                answer: answer(200, "The agent's certificate.", .named("EnrollResponse")),
                failures: [401: "tokenInvalid, tokenUsed, tokenExpired"]
            ) { request in
                let body = try request.decode(EnrollRequest.self, knownFields: fields("EnrollRequest"))
                return try .value(try await agents.enroll(body))
            },
        ]
    }

    static func jobs(_ services: NodeServices) -> [Route] {
        let jobs = services.jobs
        return [
            Route(
                method: .get, path: "/v1/jobs", operation: "listJobs", summary: "Jobs, the newest first.",
                access: .administrator,
                query: [.init(name: "limit", summary: "Default 100.", schema: .integer(1...1000))],
                answer: answer(200, "The jobs.", .array(.named("JobInfo")))
            ) { request in
                try .value(try await jobs.jobs(limit: try request.number("limit", in: 1...1000, default: 100)))
            },
            Route(
                method: .get, path: "/v1/jobs/{id}", operation: "getJob", summary: "One job.", access: .administrator,
                answer: answer(200, "The job.", .named("JobInfo")), failures: [404: "jobNotFound"]
            ) { request in
                let id = try request.parameter("id")
                guard let job = try await jobs.job(id: id) else { throw APIFailure.unknown("job", id) }
                return try .value(job)
            },
            Route(
                method: .post, path: "/v1/jobs/{id}/abandon", operation: "abandonJob",
                summary: "Gives up a job restore.finish or guest.takeBack: what is left of its work is left to people.",
                access: .administrator, answer: answer(200, "The job, which is about to end.", .named("JobInfo")),
                failures: [404: "jobNotFound", 409: "notAbandonable"]
            ) { request in
                try .value(try await services.abandon(jobID: try request.parameter("id")))
            },
            Route(
                method: .get, path: "/v1/jobs/{id}/events", operation: "watchJob",
                summary: "The job's state now and after each change, as server-sent events named job, until it ends.",
                access: .administrator,
                answer: Route.Answer(
                    status: 200, summary: "Each event's data is a JobInfo.", contentType: "text/event-stream",
                    schema: .string),
                failures: [404: "jobNotFound", 503: "tooManyWatchers"]
            ) { request in .events(try await jobs.events(id: try request.parameter("id"))) },
        ]
    }
}
