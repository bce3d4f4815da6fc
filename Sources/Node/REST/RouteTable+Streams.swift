import API
import Foundation
import HTTPTypes

// Differences and transfers of snapshots: bodies that are streams.

extension RouteTable {
    private static let lines = Route.Answer(
        status: 200, summary: "Lines of JSON, each a DiffLine; the last one is of kind end.",
        contentType: "application/x-ndjson", schema: .named("DiffLine"))
    private static let since = Route.Query(
        name: "from", summary: "Id or name of the older snapshot; everything mapped without it.", schema: .string)

    static func streams(_ services: NodeServices) -> [Route] {
        diffs(services.inventory) + transfers(services.inventory)
    }

    private static func diffs(_ inventory: Inventory) -> [Route] {
        [
            Route(
                method: .get, path: "/v1/snapshots/{idOrName}/diff", operation: "diffSnapshot",
                summary: "What changed in a volume between two snapshots, in ascending order, holes included.",
                access: .administrator,
                query: [
                    since,
                    .init(name: "volume", summary: "The member; may be left out where there is one.", schema: .string),
                    .init(
                        name: "fromVolume", summary: "The older snapshot's member, where it is another volume's.",
                        schema: .string),
                    .init(name: "offset", summary: "Begin here; a multiple of 4096.", schema: .bytes),
                ], answer: lines,
                failures: [404: "snapshotNotFound, memberNotFound", 409: "snapshotsUnrelated", 503: "tooManyStreams"]
            ) { request in
                let offset = try request.number("offset", in: 0...(64 << 40), default: 0)
                let chunks = try await inventory.diff(
                    try request.parameter("idOrName"), from: request.query["from"], volume: request.query["volume"],
                    fromVolume: request.query["fromVolume"], offset: UInt64(offset))
                return .chunks(contentType: "application/x-ndjson", chunks)
            },
            Route(
                method: .get, path: "/v1/volumes/{name}/diff", operation: "diffVolume",
                summary: "What changed in a volume since a snapshot, up to now.", access: .administrator,
                query: [since], answer: lines,
                failures: [404: "volumeNotFound, snapshotNotFound", 409: "snapshotsUnrelated", 503: "tooManyStreams"]
            ) { request in
                let chunks = try await inventory.diff(
                    volume: try request.parameter("name"), from: request.query["from"])
                return .chunks(contentType: "application/x-ndjson", chunks)
            },
        ]
    }

    private static func transfers(_ inventory: Inventory) -> [Route] {
        [
            Route(
                method: .get, path: "/v1/snapshots/{idOrName}/stream", operation: "sendSnapshot",
                summary: "A snapshot, or what changed since an older one, as a stream for POST /v1/receives.",
                access: .administrator,
                query: [
                    .init(name: "from", summary: "Id or name of the older snapshot of an increment.", schema: .string),
                    .init(name: "resume", summary: "The receiver's token for a transfer that broke.", schema: .string),
                ],
                answer: Route.Answer(
                    status: 200, summary: "The stream; docs/send-stream.md describes it.",
                    contentType: "application/octet-stream", schema: .string),
                failures: [404: "snapshotNotFound", 409: "snapshotsUnrelated", 503: "tooManyStreams"]
            ) { request in
                let chunks = try await inventory.send(
                    try request.parameter("idOrName"), from: request.query["from"], resume: request.query["resume"])
                return .chunks(contentType: "application/octet-stream", chunks)
            },
            Route(
                method: .post, path: "/v1/receives", operation: "receiveSnapshot",
                summary: "Receives a snapshot from a stream; what came of a broken one is kept and resumed.",
                access: .administrator,
                query: [
                    .init(name: "volume", summary: "The new volume's name; the sender's without it.", schema: .string),
                    .init(name: "name", summary: "The snapshot's name; the sender's without it.", schema: .string),
                ], streamType: "application/octet-stream",
                answer: answer(201, "The snapshot.", .named("SnapshotInfo")),
                failures: [400: "badStream, streamVersion", 409: "streamRefused, nameTaken, volumeInUse"]
            ) { request in
                guard let stream = request.stream else { throw APIFailure.invalid("the request needs a body") }
                let snapshot = try await inventory.receive(
                    volume: request.query["volume"], name: request.query["name"], stream)
                return try .value(snapshot, status: 201)
            },
            Route(
                method: .get, path: "/v1/receives", operation: "listReceives",
                summary: "The transfers that have begun here and not ended.", access: .administrator,
                answer: answer(200, "The transfers, by name.", .array(.named("ReceiveInfo")))
            ) { _ in try .value(try await inventory.receives()) },
            Route(
                method: .delete, path: "/v1/receives/{idOrName}", operation: "abortReceive",
                summary: "Throws away what was received of a snapshot.", access: .administrator, answer: noContent,
                failures: [404: "receiveNotFound", 409: "streamRefused"]
            ) { request in
                try await inventory.abortReceive(try request.parameter("idOrName"))
                return .empty
            },
        ]
    }
}
