// swift-tools-version: 6.2
import PackageDescription

/// The settings every target of ours is built with. Warnings are errors: a warning nobody reads is a defect kept.
let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .treatAllWarnings(as: .error),
]

let nio: [Target.Dependency] = [
    .product(name: "NIOCore", package: "swift-nio"),
    .product(name: "NIOPosix", package: "swift-nio"),
]

func plugin(_ name: String, _ more: [Target.Dependency] = []) -> Target {
    .executableTarget(
        name: "stillpoint-plugin-\(name)",
        dependencies: ["PluginKit", "CLinux"] + more,
        path: "Sources/plugins/\(name)",
        swiftSettings: strict)
}

let package = Package(
    name: "stillpoint",
    products: [
        .executable(name: "stillpoint", targets: ["stillpoint"]),
        .executable(name: "stillpoint-agent", targets: ["stillpoint-agent"]),
        .executable(name: "stillpoint-plugin-filesystem", targets: ["stillpoint-plugin-filesystem"]),
        .executable(name: "stillpoint-plugin-postgresql", targets: ["stillpoint-plugin-postgresql"]),
        .executable(name: "stillpoint-plugin-hook", targets: ["stillpoint-plugin-hook"]),
        .executable(name: "stillpoint-plugin-libvirt", targets: ["stillpoint-plugin-libvirt"]),
        .library(name: "BlockIO", targets: ["BlockIO"]),
        .library(name: "BlockStore", targets: ["BlockStore"]),
        .library(name: "ISCSI", targets: ["ISCSI"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.0"),
        .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.37.0"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.0"),
        .package(url: "https://github.com/apple/swift-certificates", from: "1.21.0"),
        .package(url: "https://github.com/apple/swift-asn1", from: "1.7.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
        .package(url: "https://github.com/apple/swift-http-types.git", from: "1.8.0"),
        .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.0"),
        .package(url: "https://github.com/swift-server/async-http-client", from: "1.37.0"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
        .package(url: "https://github.com/groue/GRDB.swift", from: "7.10.0"),
        .package(url: "https://github.com/jpsim/Yams", from: "6.2.0"),
    ],
    targets: [
        .target(name: "CLinux", swiftSettings: strict),
        .systemLibrary(name: "CLibPQ", pkgConfig: "libpq", providers: [.apt(["libpq-dev"])]),
        .systemLibrary(name: "CLibvirt", pkgConfig: "libvirt", providers: [.apt(["libvirt-dev"])]),
        .systemLibrary(name: "CLibXML2", pkgConfig: "libxml-2.0", providers: [.apt(["libxml2-dev"])]),
        .systemLibrary(name: "CZlib", pkgConfig: "zlib", providers: [.apt(["zlib1g-dev"])]),

        // The data plane: no Foundation, no GRDB, no HTTP.
        .target(name: "BlockIO", dependencies: ["CLinux"], swiftSettings: strict),
        .target(name: "BlockStore", dependencies: ["BlockIO", "CLinux"], swiftSettings: strict),
        .target(name: "SCSI", dependencies: ["BlockIO"], swiftSettings: strict),
        .target(
            name: "ISCSI",
            dependencies: [
                "SCSI", "BlockIO",
                .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "Logging", package: "swift-log"),
            ] + nio,
            swiftSettings: strict),

        // The control plane.
        .target(name: "Protection", swiftSettings: strict),
        .target(
            name: "Catalog",
            dependencies: [.product(name: "GRDB", package: "GRDB.swift")],
            swiftSettings: strict),
        .target(
            name: "API",
            dependencies: [
                .product(name: "AsyncHTTPClient", package: "async-http-client"),
                .product(name: "NIOSSL", package: "swift-nio-ssl"),
                .product(name: "NIOFoundationCompat", package: "swift-nio"),
                .product(name: "NIOHTTP1", package: "swift-nio"),
                .product(name: "NIOTLS", package: "swift-nio"),
            ] + nio,
            swiftSettings: strict),
        .target(name: "PluginKit", dependencies: ["CLinux"], swiftSettings: strict),

        // The storage node: wires pool, target, REST API, catalog, jobs and the saga's driver.
        .target(
            name: "Node",
            dependencies: [
                "API", "BlockIO", "BlockStore", "Catalog", "CLinux", "ISCSI", "Protection", "SCSI",
                .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "HTTPTypes", package: "swift-http-types"),
                .product(name: "Hummingbird", package: "hummingbird"),
                .product(name: "HummingbirdCore", package: "hummingbird"),
                .product(name: "HummingbirdTLS", package: "hummingbird"),
                .product(name: "Logging", package: "swift-log"),
                .product(name: "NIOSSL", package: "swift-nio-ssl"),
                .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
                .product(name: "SwiftASN1", package: "swift-asn1"),
                .product(name: "UnixSignals", package: "swift-service-lifecycle"),
                .product(name: "X509", package: "swift-certificates"),
                .product(name: "Yams", package: "Yams"),
            ] + nio,
            swiftSettings: strict),
        .executableTarget(
            name: "stillpoint",
            dependencies: [
                "API", "CLinux", "Node",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: strict),
        .executableTarget(
            name: "stillpoint-agent",
            dependencies: [
                "API", "CLinux", "PluginKit",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "HTTPTypes", package: "swift-http-types"),
                .product(name: "Hummingbird", package: "hummingbird"),
                .product(name: "HummingbirdCore", package: "hummingbird"),
                .product(name: "Logging", package: "swift-log"),
                .product(name: "NIOSSL", package: "swift-nio-ssl"),
                .product(name: "SwiftASN1", package: "swift-asn1"),
                .product(name: "X509", package: "swift-certificates"),
                .product(name: "Yams", package: "Yams"),
            ] + nio,
            swiftSettings: strict),
        plugin("filesystem"),
        plugin("postgresql", ["CLibPQ"]),
        plugin("hook"),
        plugin("libvirt", ["CLibvirt", "CLibXML2", "CZlib"]),

        // A simulated disk and a seeded generator, for the tests of the store.
        .target(name: "Simulation", dependencies: ["BlockIO"], path: "Tests/Simulation", swiftSettings: strict),
        // An iSCSI initiator that does what a test wants.
        .target(name: "TestInitiator", path: "Tests/TestInitiator", swiftSettings: strict),
        .testTarget(name: "BlockIOTests", dependencies: ["BlockIO"], swiftSettings: strict),
        .testTarget(
            name: "BlockStoreTests", dependencies: ["BlockStore", "BlockIO", "Simulation"], swiftSettings: strict),
        .testTarget(name: "ProtectionTests", dependencies: ["Protection"], swiftSettings: strict),
        .testTarget(name: "SCSITests", dependencies: ["SCSI", "BlockIO"], swiftSettings: strict),
        .testTarget(
            name: "ISCSITests",
            dependencies: [
                "ISCSI", "SCSI", "BlockIO", "BlockStore", "Simulation", "TestInitiator",
                .product(name: "Logging", package: "swift-log"),
            ] + nio,
            swiftSettings: strict),
        .testTarget(name: "PluginKitTests", dependencies: ["PluginKit"], swiftSettings: strict),
        .testTarget(
            name: "PluginsTests",
            dependencies: [
                "PluginKit", "CLinux", "stillpoint-plugin-filesystem", "stillpoint-plugin-postgresql",
                "stillpoint-plugin-hook", "stillpoint-plugin-libvirt",
            ],
            swiftSettings: strict),
        .testTarget(
            name: "AgentTests",
            dependencies: [
                "API", "PluginKit", "stillpoint-agent",
                .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "Hummingbird", package: "hummingbird"),
                .product(name: "HummingbirdCore", package: "hummingbird"),
                .product(name: "HummingbirdTLS", package: "hummingbird"),
                .product(name: "Logging", package: "swift-log"),
                .product(name: "NIOSSL", package: "swift-nio-ssl"),
                .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
                .product(name: "SwiftASN1", package: "swift-asn1"),
                .product(name: "X509", package: "swift-certificates"),
            ] + nio,
            swiftSettings: strict),
        .testTarget(
            name: "APITests",
            dependencies: ["API", .product(name: "NIOHTTP1", package: "swift-nio")] + nio,
            swiftSettings: strict),
        .testTarget(
            name: "CatalogTests", dependencies: ["Catalog", .product(name: "GRDB", package: "GRDB.swift")],
            swiftSettings: strict),
        .testTarget(
            name: "NodeTests",
            dependencies: [
                "API", "BlockIO", "BlockStore", "Catalog", "ISCSI", "Node", "SCSI",
                .product(name: "AsyncHTTPClient", package: "async-http-client"),
                .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "HTTPTypes", package: "swift-http-types"),
                .product(name: "Logging", package: "swift-log"),
                .product(name: "NIOHTTP1", package: "swift-nio"),
                .product(name: "NIOSSL", package: "swift-nio-ssl"),
                .product(name: "SwiftASN1", package: "swift-asn1"),
                .product(name: "X509", package: "swift-certificates"),
            ] + nio,
            swiftSettings: strict),
        .testTarget(
            name: "NodeSagaTests",
            dependencies: [
                "API", "BlockIO", "BlockStore", "Catalog", "Node", "Protection",
                .product(name: "Logging", package: "swift-log"),
            ] + nio,
            swiftSettings: strict),
        .testTarget(
            name: "CLITests",
            dependencies: [
                "API", "stillpoint", .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: strict),
        .testTarget(name: "StyleTests", swiftSettings: strict),
        .testTarget(name: "SystemTests", dependencies: ["API", "TestInitiator"], swiftSettings: strict),
    ]
)
